// AVX-512 BF16: one instruction sums the products of two pairs of bfloat16 per lane.
#pragma once

#include "cpu/simd/avx512.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

inline constexpr bool kHasBFloat16Pairs = true;

struct BFloat16Pairs {
  using Pairs = __m512bh;
  using Half = __m256bh;  // kWidth / 2 pairs

  HIGGS_INLINE Half round(Vec v) { return _mm512_cvtneps_pbh((__m512)v); }

  // Each lane's 32 bits as a pair; the lower half is the first.
  HIGGS_INLINE Pairs from_words(UIntVec words) { return (Pairs)words; }

  HIGGS_INLINE Vec dot(Vec sum, Pairs a, Pairs b) { return (Vec)_mm512_dpbf16_ps((__m512)sum, a, b); }

  // e4m3 weights 2 * pair and 2 * pair + 1 of each word. dot() takes subnormal numbers for zero, so the 8 subnormal
  // numbers of e4m3 come from a table, as normal numbers of bfloat16.
  HIGGS_INLINE Pairs widen_e4m3(UIntVec words, int pair) {
    const __m512i order = _mm512_broadcast_i32x4(_mm_set_epi32(0x0d0d0c0c, 0x09090808, 0x05050404, 0x01010000));
    const __m512i subnormal =
        _mm512_broadcast_i32x4(_mm_set_epi16(0x3c60, 0x3c40, 0x3c20, 0x3c00, 0x3bc0, 0x3b80, 0x3b00, 0));
    // Both bytes of 16 bits are the weight.
    const __m512i twice = _mm512_shuffle_epi8((__m512i)(words >> (16 * pair)), order);
    const __m512i magnitude = _mm512_and_si512(_mm512_srli_epi16(twice, 4), _mm512_set1_epi16(0x07f0));
    // The exponents' offsets are 127 and 7.
    const __m512i normal = _mm512_add_epi16(magnitude, _mm512_set1_epi16(120 << 7));
    const __mmask32 is_subnormal = _mm512_testn_epi16_mask(twice, _mm512_set1_epi16(0x7800));
    const __m512i unsigned_bits = _mm512_mask_permutexvar_epi16(normal, is_subnormal, twice, subnormal);
    return (Pairs)_mm512_or_si512(unsigned_bits, _mm512_and_si512(twice, _mm512_set1_epi16(-0x8000)));
  }
};

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
