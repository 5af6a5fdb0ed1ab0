// Float vectors of the width of the instruction set that a kernel file is compiled for (HIGGS_NATIVE_ISA). The compiler's
// vector extensions keep one source for every set; contraction turns `a * b + c` into a fused multiply-add where there is
// one. Everything stands in a namespace named after the set: the linker must never merge a function compiled for a wide
// set into a narrow one. For the same reason a kernel file uses no template of the standard library.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/numbers.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef HIGGS_NATIVE_ISA
#error "simd.h is for kernel files, which are compiled once for each instruction set"
#endif

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

#if defined(__AVX512F__)
inline constexpr int kWidth = 16;
#elif defined(__AVX2__)
inline constexpr int kWidth = 8;
#else
inline constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t IntVec __attribute__((vector_size(kWidth * 4)));
typedef uint32_t UIntVec __attribute__((vector_size(kWidth * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(kWidth * 2)));
typedef int8_t ByteVec __attribute__((vector_size(kWidth)));

#define HIGGS_INLINE static inline __attribute__((always_inline))

HIGGS_INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

// The widening is spelled out where one instruction does it: compilers make several of __builtin_convertvector.
HIGGS_INLINE Vec load(const bfloat16* p) {
#if defined(__AVX512F__)
  return (Vec)((UIntVec)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))) << 16);
#elif defined(__AVX2__)
  return (Vec)((UIntVec)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))) << 16);
#else
  HalfVec h;
  memcpy(&h, p, sizeof h);
  return (Vec)(__builtin_convertvector(h, UIntVec) << 16);
#endif
}

// From float16 in the lower halves of 32 bits; the upper halves are zero.
HIGGS_INLINE Vec widen_float16(UIntVec bits) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)bits));
#elif defined(__F16C__)
  const __m128i lower = _mm256_castsi256_si128((__m256i)bits), upper = _mm256_extracti128_si256((__m256i)bits, 1);
  return (Vec)_mm256_cvtph_ps(_mm_packus_epi32(lower, upper));
#else
  // The exponent's offset is 15 instead of 127; scaling by the difference also widens what is too small for it. What has the
  // largest exponent, infinities and NaN, keeps it.
  const UIntVec magnitude = (bits & 0x7fffu) << 13;
  const UIntVec scaled = (UIntVec)((Vec)magnitude * (Vec{} + 0x1p112f));
  return (Vec)((bits & 0x8000u) << 16 | ((bits & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : scaled));
#endif
}

HIGGS_INLINE Vec load(const float16* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  HalfVec h;
  memcpy(&h, p, sizeof h);
  return widen_float16(__builtin_convertvector(h, UIntVec));
#endif
}

HIGGS_INLINE float to_float(float x) { return x; }

HIGGS_INLINE float to_float(bfloat16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

HIGGS_INLINE float to_float(float16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  return widen_float16(UIntVec{} + x.bits)[0];
#endif
}

HIGGS_INLINE void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }

HIGGS_INLINE void store_value(float* p, float x) { *p = x; }

// Round to nearest even; a NaN stays one.
HIGGS_INLINE void store_value(bfloat16* p, float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  p->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

HIGGS_INLINE void store_value(float16* p, float x) {
#if defined(__F16C__)
  p->bits = static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
  const float magnitude = __builtin_fabsf(x), shifted = magnitude + 0.5f;
  uint32_t bits, shifted_bits;
  memcpy(&bits, &magnitude, 4);
  memcpy(&shifted_bits, &shifted, 4);
  uint32_t half;
  if (x != x) half = 0x7e00;
  else if (magnitude >= 65520.f) half = 0x7c00;
  // Too small for the exponent: adding 0.5, whose last bit is worth as much as theirs, rounds them.
  else if (magnitude < 0x1p-14f) half = shifted_bits - 0x3f000000u;
  else half = (bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
  p->bits = static_cast<uint16_t>(half | (__builtin_signbit(x) ? 0x8000u : 0u));
#endif
}

// x - 0 is x, sign of zero and all, so that this compiles to one broadcast; 0 + x would be an addition.
HIGGS_INLINE Vec splat(float x) { return x - Vec{}; }

// a * b + c in scalars, rounded as the vectors round it.
HIGGS_INLINE float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// To the nearest integer, of two the even one. (Adding and subtracting a large number would fuse with what came before.)
HIGGS_INLINE IntVec round_to_int(Vec v) {
#if defined(__AVX512F__)
  return (IntVec)_mm512_cvtps_epi32((__m512)v);
#elif defined(__AVX2__)
  return (IntVec)_mm256_cvtps_epi32((__m256)v);
#elif defined(__SSE2__)
  return (IntVec)_mm_cvtps_epi32((__m128)v);
#else
  IntVec rounded;
  for (int i = 0; i < kWidth; ++i) rounded[i] = static_cast<int32_t>(__builtin_rintf(v[i]));
  return rounded;
#endif
}

HIGGS_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// All lanes joined in pairs, then the pairs, and so on.
template <typename F>
HIGGS_INLINE float join_lanes(Vec v, const F& join) {
  float lanes[kWidth];
  memcpy(lanes, &v, sizeof v);
#pragma GCC unroll 4
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = join(lanes[i], lanes[i + half]);
  }
  return lanes[0];
}

HIGGS_INLINE float sum(Vec v) {
  return join_lanes(v, [](float a, float b) { return a + b; });
}

HIGGS_INLINE float largest(Vec v) {
  return join_lanes(v, [](float a, float b) { return a > b ? a : b; });
}

HIGGS_INLINE Vec select(IntVec mask, Vec a, Vec b) { return mask ? a : b; }

// exp(x) to 2 ulp up to x = 88, where it stays; 0 below -87.
HIGGS_INLINE Vec exp(Vec x) {
  x = select(x > splat(88.f), splat(88.f), x);
  const Vec log2e = splat(1.44269504f);
  Vec y = x * log2e;
  y = select(y < splat(-126.f), splat(-126.f), y);
  const Vec magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  Vec whole = (y + magic) - magic;
  // The remainder from x itself, in two parts of ln 2, keeps the digits that y lost to rounding.
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
