// Products of bytes with AVX2.
#pragma once

#include <immintrin.h>

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

inline constexpr bool kSignedWeights = true;

// sum + the dot product of 4 signed weights and 4 signed bytes above -128 per lane: the weights' magnitudes times bytes
// that take the weights' signs. Sums of two products are at most 2 * 128 * 127, which 16 bits hold.
HIGGS_INLINE IntVec dot_bytes(IntVec sum, UIntVec weights, UIntVec signed_bytes) {
  const __m256i w = (__m256i)weights, bytes = _mm256_sign_epi8((__m256i)signed_bytes, w);
  return sum + (IntVec)_mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), bytes), _mm256_set1_epi16(1));
}

// How often two products of a 4-bit integer, which has no sign, and a byte above -128 can be added in 16 bits.
inline constexpr int kShortSumTimes = 8;

struct ShortSums {
  typedef int16_t Sums __attribute__((vector_size(32)));

  HIGGS_INLINE Sums add_products(Sums sums, UIntVec small, UIntVec signed_bytes) {
    return sums + (Sums)_mm256_maddubs_epi16((__m256i)small, (__m256i)signed_bytes);
  }

  HIGGS_INLINE IntVec add(IntVec to, Sums sums) {
    return to + (IntVec)_mm256_madd_epi16((__m256i)sums, _mm256_set1_epi16(1));
  }
};

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
