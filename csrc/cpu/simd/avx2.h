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

inline constexpr bool kSignedWeights = false;

// sum + the dot product of 4 unsigned and 4 signed bytes per lane. Even and odd bytes are multiplied apart, as 16-bit
// integers, whose products are summed in pairs without saturation.
HIGGS_INLINE IntVec dot_bytes(IntVec sum, UIntVec unsigned_bytes, UIntVec signed_bytes) {
  const UIntVec even = unsigned_bytes & 0x00ff00ffu, odd = unsigned_bytes >> 8 & 0x00ff00ffu;
  const __m256i signed_even = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)signed_bytes, 8), 8);
  const __m256i signed_odd = _mm256_srai_epi16((__m256i)signed_bytes, 8);
  return sum + (IntVec)_mm256_madd_epi16((__m256i)even, signed_even) +
         (IntVec)_mm256_madd_epi16((__m256i)odd, signed_odd);
}

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
