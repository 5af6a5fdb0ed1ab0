// Conversions between float32 and numbers of 16 bits in kernels, for device.h of CUDA and of its emulation. Each of
// them defines to_float(float16) and to_float16.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/numbers.h"

namespace higgs_native::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr float kMaxFloat = 3.4028234e38f;

__host__ __device__ __forceinline__ float bits_as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

__host__ __device__ __forceinline__ uint32_t float_as_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

__device__ __forceinline__ float to_float(float16 x);
__device__ __forceinline__ float16 to_float16(float x);

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bfloat16 x) { return bits_as_float(static_cast<uint32_t>(x.bits) << 16); }

// Rounds to nearest even; a NaN stays one.
__device__ __forceinline__ bfloat16 to_bfloat16(float x) {
  const uint32_t bits = float_as_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

template <typename T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) return x;
  else if constexpr (std::is_same_v<T, float16>) return to_float16(x);
  else return to_bfloat16(x);
}

// The two numbers of 16 bits in a word; the first is the lower half.
template <typename T>
__device__ __forceinline__ float2 unpack(uint32_t word) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return make_float2(bits_as_float(word << 16), bits_as_float(word & 0xffff0000u));
  } else {
    return make_float2(
        to_float(float16{static_cast<uint16_t>(word)}), to_float(float16{static_cast<uint16_t>(word >> 16)}));
  }
}

}  // namespace higgs_native::cuda
