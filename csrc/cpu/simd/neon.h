// NEON, which every 64-bit ARM processor has: vectors of 4 floats. Widening and rounding are one instruction.
#pragma once

#include <arm_neon.h>

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

HIGGS_NATIVE_VECTOR_TYPES(4, 32);

HIGGS_INLINE Vec load(const bfloat16* p) { return (Vec)vshll_n_u16(vld1_u16(&p->bits), 16); }

HIGGS_INLINE Vec widen_halves(uint16x4_t bits) { return (Vec)vcvt_f32_f16(vreinterpret_f16_u16(bits)); }

// float16 in the lower halves of 32 bits; the upper halves are zero.
HIGGS_INLINE Vec widen_float16(UIntVec bits) { return widen_halves(vmovn_u32((uint32x4_t)bits)); }

HIGGS_INLINE Vec load(const float16* p) { return widen_halves(vld1_u16(&p->bits)); }

HIGGS_INLINE float to_float(float16 x) {
  __fp16 half;
  memcpy(&half, &x, sizeof half);
  return half;
}

// Rounds to nearest even; infinity above 65504.
HIGGS_INLINE void store_value(float16* p, float x) {
  const __fp16 half = static_cast<__fp16>(x);
  memcpy(p, &half, sizeof half);
}

// To the nearest integer, ties to even.
HIGGS_INLINE IntVec round_to_int(Vec v) { return (IntVec)vcvtnq_s32_f32((float32x4_t)v); }

inline constexpr bool kSignedWeights = true;

// sum + the dot product of 4 signed weights and 4 signed bytes above -128 per lane.
HIGGS_INLINE IntVec dot_bytes(IntVec sum, UIntVec weights, UIntVec signed_bytes) {
  const int8x16_t w = (int8x16_t)weights, v = (int8x16_t)signed_bytes;
#if defined(__ARM_FEATURE_DOTPROD)
  return (IntVec)vdotq_s32((int32x4_t)sum, w, v);
#else
  // Sums of two products are at most 2 * 128 * 127, which 16 bits hold.
  const int16x8_t lower = vmull_s8(vget_low_s8(w), vget_low_s8(v)), upper = vmull_high_s8(w, v);
  return (IntVec)vpadalq_s16((int32x4_t)sum, vpaddq_s16(lower, upper));
#endif
}

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
