// Vectors as wide as the instruction set that a kernel file is compiled for (HIGGS_NATIVE_ISA). The compiler's vector
// extensions keep one source for all sets; contraction turns `a * b + c` into a fused multiply-add if the set has one.
//
// The differences between sets are in one header per set, chosen here. Everything is in a namespace named after the
// set: the linker must never merge a function compiled for a wide set into a narrow one. For the same reason a kernel
// file uses no function template of the standard library.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/numbers.h"

#ifndef HIGGS_NATIVE_ISA
#error "simd.h is for kernel files, which are compiled once for each instruction set"
#endif

#define HIGGS_INLINE static inline __attribute__((always_inline))

// The vector types of a set that has `registers` vectors of `width` floats.
#define HIGGS_NATIVE_VECTOR_TYPES(width, registers)                 \
  inline constexpr int kWidth = width;                              \
  inline constexpr int kRegisters = registers;                      \
  typedef float Vec __attribute__((vector_size(width * 4)));        \
  typedef int32_t IntVec __attribute__((vector_size(width * 4)));   \
  typedef uint32_t UIntVec __attribute__((vector_size(width * 4))); \
  typedef uint16_t HalfVec __attribute__((vector_size(width * 2))); \
  typedef int8_t ByteVec __attribute__((vector_size(width)))

#if defined(__AVX512F__)
#include "cpu/simd/avx512.h"
#elif defined(__AVX2__)
#include "cpu/simd/avx2.h"
// Not by the compiler's macro: generic code for ARM may use NEON too, as the compiler likes.
#elif defined(HIGGS_NATIVE_NEON)
#include "cpu/simd/neon.h"
#else
#include "cpu/simd/generic.h"
#endif

#if defined(__AVXVNNI__)
#include "cpu/simd/avx_vnni.h"
#elif defined(__AVX2__) && !defined(__AVX512F__)
#include "cpu/simd/avx2_bytes.h"
#endif

#if !defined(__AVX2__) || defined(__AVX512F__) || defined(__AVXVNNI__)
#include "cpu/simd/no_short_sums.h"
#endif

#if defined(__AVX512BF16__)
#include "cpu/simd/avx512_bf16.h"
#elif defined(HIGGS_NATIVE_NEON) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include "cpu/simd/neon_bf16.h"
#else
#include "cpu/simd/no_bf16.h"
#endif

#if defined(__AMX_TILE__)
#include "cpu/simd/amx.h"
#elif defined(HIGGS_NATIVE_NEON) && defined(__ARM_FEATURE_MATMUL_INT8)
#include "cpu/simd/neon_i8mm.h"
#else
#include "cpu/simd/no_tiles.h"
#endif

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

HIGGS_INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

// The first `count` values, zeros after them. A whole vector takes no call of memcpy.
HIGGS_INLINE Vec load(const float* p, int64_t count) {
  if (count >= kWidth) return load(p);
  Vec v = {};
  memcpy(&v, p, count * sizeof(float));
  return v;
}

HIGGS_INLINE void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }

// The first `count` values.
HIGGS_INLINE void store(float* p, Vec v, int64_t count) {
  if (count >= kWidth) store(p, v);
  else memcpy(p, &v, count * sizeof(float));
}

HIGGS_INLINE float to_float(float x) { return x; }

HIGGS_INLINE float to_float(bfloat16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

HIGGS_INLINE void store_value(float* p, float x) { *p = x; }

// Rounds to nearest even; a NaN stays one.
HIGGS_INLINE void store_value(bfloat16* p, float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  p->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// x - 0 is x, even for -0, and compiles to one broadcast; 0 + x would be an addition.
HIGGS_INLINE Vec splat(float x) { return x - Vec{}; }

HIGGS_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// Combines lanes i and i + half for each half of the width.
template <typename F>
HIGGS_INLINE float reduce_lanes(Vec v, const F& combine) {
  float lanes[kWidth];
  memcpy(lanes, &v, sizeof v);
#pragma GCC unroll 4
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = combine(lanes[i], lanes[i + half]);
  }
  return lanes[0];
}

HIGGS_INLINE float sum(Vec v) {
  return reduce_lanes(v, [](float a, float b) { return a + b; });
}

HIGGS_INLINE float largest(Vec v) {
  return reduce_lanes(v, [](float a, float b) { return a > b ? a : b; });
}

HIGGS_INLINE Vec select(IntVec mask, Vec a, Vec b) { return mask ? a : b; }

// exp(x) to 2 ulp, constant above x = 88 and 0 below x = -87.
HIGGS_INLINE Vec exp(Vec x) {
  x = select(x > splat(88.f), splat(88.f), x);
  const Vec log2e = splat(1.44269504f);
  Vec y = x * log2e;
  y = select(y < splat(-126.f), splat(-126.f), y);
  const Vec magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  Vec whole = (y + magic) - magic;
  // The remainder is taken from x, with ln 2 in two parts: y has lost the digits that it needs.
  Vec r = x - whole * splat(0.693359375f);
  r = r - whole * splat(-2.12194440e-4f);
  Vec p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + splat(1.f);
  IntVec exponent = (__builtin_convertvector(whole, IntVec) + 127) << 23;
  Vec result = p * (Vec)exponent;
  return select(x < splat(-87.f), splat(0.f), result);
}

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
