// The functions of cuda/warpgroup.h on the CPU; see there for what they do. A product is computed when it is waited
// for: until then its sums are those from before. It may read shared memory from its beginning until then.
#pragma once

#include "cuda/emulation/device.h"
#include "cuda/warpgroup.h"

namespace higgs_native::cuda {

inline uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(static_cast<const char*>(at) - emulation::registers.shared_memory);
}

inline void show_to_products() {}

template <int kCount, int kProducts>
inline void begin_products(float (&)[kCount], uint32_t (&)[kProducts][4]) {}

inline void end_group_of_products() { emulation::end_group_of_products(); }

template <int kLeft>
inline void wait_for_groups_of_products() {
  emulation::wait_for_groups_of_products(kLeft);
}

template <int kCount>
inline void wait_for_products(float (&)[kCount]) {
  wait_for_groups_of_products<0>();
}

template <int kProducts>
inline void hold(const uint32_t (&)[kProducts][4]) {}

// The line of 16 bytes of a column in a half of the depth, which it reads.
HIGGS_NATIVE_HARDWARE inline const char* read_line(uint64_t descriptor, int half, int column, const void* code) {
  if (descriptor >> 46 != 0) emulation::fail("a matrix descriptor must have neither a base offset nor swizzling");
  const auto field = [&](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4; };
  const char* line =
      emulation::registers.shared_memory + field(0) + half * field(16) + column / 8 * field(32) + column % 8 * 16;
  emulation::races::access(line, 16, emulation::races::Access::read, code);
  return line;
}

template <typename T, int kColumns>
HIGGS_NATIVE_HARDWARE void compute_product(const emulation::Product& product) {
  const int t = static_cast<int>(emulation::lane()) % 4;
  for (int j = 0; j < kColumns / 8; ++j) {
    for (int column = 2 * t; column < 2 * t + 2; ++column) {
      uint32_t b[8];
      for (int half = 0; half < 2; ++half) {
        std::memcpy(b + 4 * half, read_line(product.descriptor, half, 8 * j + column, product.code), 16);
      }
      for (int row = 0; row < 2; ++row) {
        float& sum = product.sums[4 * j + 2 * row + column % 2];
        if (!product.adds) sum = 0;
        for (int word = 0; word < 8; ++word) {
          const float2 from_a = unpack<T>(product.a[row][word]), from_b = unpack<T>(b[word]);
          sum += from_a.x * from_b.x;
          sum += from_a.y * from_b.y;
        }
      }
    }
  }
}

template <typename T, int kColumns>
HIGGS_NATIVE_HARDWARE void begin_product(
    float (&sums)[kColumns / 2], const uint32_t (&a)[4], const SharedColumns& b, bool adds) {
  const emulation::Fragment* lanes = emulation::exchange({{a[0], a[1], a[2], a[3]}});
  const int g = static_cast<int>(emulation::lane()) / 4;
  emulation::Product product = {compute_product<T, kColumns>, sums, {}, b.descriptor, adds,
                                __builtin_return_address(0)};
  for (int word = 0; word < 8; ++word) {
    for (int row = 0; row < 2; ++row) product.a[row][word] = lanes[4 * g + word % 4].words[word / 4 * 2 + row];
  }
  const int t = static_cast<int>(emulation::lane()) % 4;
  for (int i = 0; i < kColumns / 2; ++i) read_line(b.descriptor, i % 2, i / 4 * 8 + 2 * t + i / 2 % 2, product.code);
  emulation::begin_product(product);
}

}  // namespace higgs_native::cuda
