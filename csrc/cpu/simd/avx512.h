// AVX-512 (F, BW, VL, DQ and VNNI): vectors of 16 floats. Widening is written as one instruction; compilers make
// several of __builtin_convertvector.
#pragma once

#include <immintrin.h>

#include "cpu/simd/f16c.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

HIGGS_NATIVE_VECTOR_TYPES(16, 32);

HIGGS_INLINE Vec load(const bfloat16* p) {
  return (Vec)((UIntVec)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))) << 16);
}

// float16 in the lower halves of 32 bits; the upper halves are zero.
HIGGS_INLINE Vec widen_float16(UIntVec bits) { return (Vec)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)bits)); }

HIGGS_INLINE Vec load(const float16* p) {
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// To the nearest integer, ties to even.
HIGGS_INLINE IntVec round_to_int(Vec v) { return (IntVec)_mm512_cvtps_epi32((__m512)v); }

inline constexpr bool kSignedWeights = false;

// sum + the dot product of 4 unsigned and 4 signed bytes per lane.
HIGGS_INLINE IntVec dot_bytes(IntVec sum, UIntVec unsigned_bytes, UIntVec signed_bytes) {
  return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
}

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
