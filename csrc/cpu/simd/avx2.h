// AVX2, FMA and F16C: vectors of 8 floats. Widening is written as one instruction; compilers make several of
// __builtin_convertvector.
#pragma once

#include <immintrin.h>

#include "cpu/simd/f16c.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

HIGGS_NATIVE_VECTOR_TYPES(8, 16);

HIGGS_INLINE Vec load(const bfloat16* p) {
  return (Vec)((UIntVec)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))) << 16);
}

// float16 in the lower halves of 32 bits; the upper halves are zero.
HIGGS_INLINE Vec widen_float16(UIntVec bits) {
  const __m128i lower = _mm256_castsi256_si128((__m256i)bits), upper = _mm256_extracti128_si256((__m256i)bits, 1);
  return (Vec)_mm256_cvtph_ps(_mm_packus_epi32(lower, upper));
}

HIGGS_INLINE Vec load(const float16* p) {
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// To the nearest integer, ties to even.
HIGGS_INLINE IntVec round_to_int(Vec v) { return (IntVec)_mm256_cvtps_epi32((__m256)v); }

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
