// NEON with BF16: one instruction sums the products of two pairs of bfloat16 per lane. It takes subnormal numbers for
// zero.
#pragma once

#include "cpu/simd/neon.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

inline constexpr bool kHasBFloat16Pairs = true;

struct BFloat16Pairs {
  using Pairs = bfloat16x8_t;
  using Half = bfloat16x4_t;  // kWidth / 2 pairs

  HIGGS_INLINE Half round(Vec v) { return vcvt_bf16_f32((float32x4_t)v); }

  // Each lane's 32 bits as a pair; the lower half is the first.
  HIGGS_INLINE Pairs from_words(UIntVec words) { return (Pairs)words; }

  HIGGS_INLINE Vec dot(Vec sum, Pairs a, Pairs b) { return (Vec)vbfdotq_f32((float32x4_t)sum, a, b); }

  // e4m3 weights 2 * pair and 2 * pair + 1 of each word.
  HIGGS_INLINE Pairs widen_e4m3(UIntVec words, int pair) {
    const Vec first = widen_byte(words << (24 - 16 * pair)), second = widen_byte(words << (16 - 16 * pair));
    // The upper halves of both: the first's moves into the lower half of the second.
    return (Pairs)vsriq_n_u32((uint32x4_t)second, (uint32x4_t)first, 16);
  }

 private:
  // e4m3 in the uppermost bytes. The arithmetic shift keeps the sign on top. Scaling corrects the exponent's offset, 7
  // instead of 127, and makes subnormal numbers of e4m3 normal ones.
  HIGGS_INLINE Vec widen_byte(UIntVec upper) {
    return (Vec)((UIntVec)((IntVec)upper >> 4) & 0x87f00000u) * (Vec{} + 0x1p120f);
  }
};

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
