// The functions of cuda/device.h on the CPU; see there for what they do.
#pragma once

#include <torch/headeronly/util/Half.h>

#include "cuda/emulation/emulation.h"
#include "cuda/numbers.h"

namespace higgs_native::cuda {

inline float to_float(float16 x) {
  return static_cast<float>(torch::headeronly::Half(x.bits, torch::headeronly::Half::from_bits()));
}

inline float16 to_float16(float x) { return {torch::headeronly::Half(x).x}; }

template <typename T>
inline uint32_t pack(float first, float second) {
  return from_float<T>(first).bits | static_cast<uint32_t>(from_float<T>(second).bits) << 16;
}

inline uint32_t widen_e4m3(uint32_t word) {
  const uint32_t bits = (word & 0x80008000u) | (word >> 4 & 0x07f007f0u);
  return pack<bfloat16>(bits_as_float(bits << 16) * 0x1p120f, bits_as_float(bits & 0xffff0000u) * 0x1p120f);
}

inline uint4 load_streaming(const void* p) { return *static_cast<const uint4*>(p); }

inline void prefetch_l2(const void* from, uint32_t bytes) { emulation::prefetch(from, bytes); }

template <typename T>
inline T load_l2(const T* p) {
  return *p;
}

inline int32_t fenced_add(int32_t* to, int32_t value) {
  emulation::races::fence();
  const int32_t before = atomicAdd(to, value);
  emulation::races::fence();
  return before;
}

inline char* dynamic_shared() { return emulation::registers.shared_memory; }

inline void copy_async(float* to, const float* from, bool wanted) {
  emulation::copy_async(to, wanted ? from : nullptr, sizeof *to);
}

inline void copy_async(uint2* to, const void* from, bool wanted) {
  emulation::copy_async(to, wanted ? from : nullptr, sizeof *to);
}

inline void copy_async(uint4* to, const void* from, bool wanted) {
  emulation::copy_async(to, wanted ? from : nullptr, sizeof *to);
}

inline void wait_for_copies() { emulation::wait_for_copies(); }

inline void end_group_of_copies() { emulation::end_group_of_copies(); }

template <int kLeft>
inline void wait_for_groups_of_copies() {
  emulation::wait_for_groups_of_copies(kLeft);
}

inline void wait_for_earlier_launches() { emulation::races::wait_for_earlier_launches(); }

inline void allow_next_launch() { emulation::races::allow_next_launch(); }

inline uint32_t round_to_byte(float x, float factor) { return float_as_bits(x * factor + 0x1.8p23f); }

inline uint32_t lower_halves(uint32_t first, uint32_t second) { return (first & 0xffffu) | second << 16; }

inline uint32_t upper_halves(uint32_t first, uint32_t second) { return first >> 16 | (second & 0xffff0000u); }

inline uint32_t pack_bytes(const uint32_t (&four)[4]) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word |= (four[i] & 0xff) << (8 * i);
  return word;
}

inline void add_bytes(int32_t& sum, uint32_t word) {
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(word >> (8 * i));
}

// Lane 4 g + t brings words t of rows g and g + 8 of a, for both halves of the depth, and of column g of b. The word of a
// row's half is number 2 * half + row / 8.
template <typename T>
HIGGS_NATIVE_HARDWARE void multiply_pairs(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::Fragment own;
  for (int word = 0; word < 6; ++word) {
    const float2 pair = unpack<T>(word < 4 ? a[word] : b[word - 4]);
    own.words[2 * word] = float_as_bits(pair.x);
    own.words[2 * word + 1] = float_as_bits(pair.y);
  }
  const emulation::Fragment* lanes = emulation::exchange(own);
  const int g = static_cast<int>(emulation::lane()) / 4, t = static_cast<int>(emulation::lane()) % 4;
  for (int i = 0; i < 4; ++i) {
    const int column = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int half = k / 8, at = k % 8 / 2;
      const uint32_t from_a = lanes[4 * g + at].words[2 * (2 * half + i / 2) + k % 2];
      const uint32_t from_b = lanes[4 * column + at].words[2 * (4 + half) + k % 2];
      sums[i] += bits_as_float(from_a) * bits_as_float(from_b);
    }
  }
}

template <bool kSigned>
HIGGS_NATIVE_HARDWARE void multiply_bytes(int32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const emulation::Fragment* lanes = emulation::exchange({{a[0], a[1], a[2], a[3], b[0], b[1]}});
  const int g = static_cast<int>(emulation::lane()) / 4, t = static_cast<int>(emulation::lane()) % 4;
  for (int i = 0; i < 4; ++i) {
    const int column = 2 * t + i % 2;
    for (int k = 0; k < 32; ++k) {
      const int half = k / 16, at = k % 16 / 4, shift = 8 * (k % 4);
      const uint32_t from_a = lanes[4 * g + at].words[2 * half + i / 2] >> shift & 0xff;
      const uint32_t from_b = lanes[4 * column + at].words[4 + half] >> shift & 0xff;
      const int weight = kSigned ? static_cast<int8_t>(from_a) : static_cast<int>(from_a);
      sums[i] += weight * static_cast<int8_t>(from_b);
    }
  }
}

}  // namespace higgs_native::cuda
