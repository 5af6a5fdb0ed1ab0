// Any processor: vectors of 4 floats, in the compiler's vector extensions alone.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

// A number of registers that every processor has, besides those that compilers need to take operations apart.
HIGGS_NATIVE_VECTOR_TYPES(4, 8);

HIGGS_INLINE Vec load(const bfloat16* p) {
  HalfVec h;
  memcpy(&h, p, sizeof h);
  return (Vec)(__builtin_convertvector(h, UIntVec) << 16);
}

// float16 in the lower halves of 32 bits; the upper halves are zero. Scaling corrects the exponent's offset, 15 instead
// of 127, and normalizes subnormal numbers. Infinities and NaN keep the largest exponent.
HIGGS_INLINE Vec widen_float16(UIntVec bits) {
  const UIntVec magnitude = (bits & 0x7fffu) << 13;
  const UIntVec scaled = (UIntVec)((Vec)magnitude * (Vec{} + 0x1p112f));
  return (Vec)((bits & 0x8000u) << 16 | ((bits & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : scaled));
}

HIGGS_INLINE Vec load(const float16* p) {
  HalfVec h;
  memcpy(&h, p, sizeof h);
  return widen_float16(__builtin_convertvector(h, UIntVec));
}

HIGGS_INLINE float to_float(float16 x) { return widen_float16(UIntVec{} + x.bits)[0]; }

// Rounds to nearest even; infinity above 65504.
HIGGS_INLINE void store_value(float16* p, float x) {
  const float magnitude = __builtin_fabsf(x), shifted = magnitude + 0.5f;
  uint32_t bits, shifted_bits;
  memcpy(&bits, &magnitude, 4);
  memcpy(&shifted_bits, &shifted, 4);
  uint32_t half;
  if (x != x) half = 0x7e00;
  else if (magnitude >= 65520.f) half = 0x7c00;
  // Subnormal: the last bit of 0.5 has the value of theirs, so adding 0.5 rounds.
  else if (magnitude < 0x1p-14f) half = shifted_bits - 0x3f000000u;
  else half = (bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
  p->bits = static_cast<uint16_t>(half | (__builtin_signbit(x) ? 0x8000u : 0u));
}

// To the nearest integer, ties to even. (Adding and subtracting a large number would fuse with earlier operations.)
HIGGS_INLINE IntVec round_to_int(Vec v) {
#if defined(__SSE2__)
  return (IntVec)_mm_cvtps_epi32((__m128)v);
#else
  IntVec rounded;
  for (int i = 0; i < kWidth; ++i) rounded[i] = static_cast<int32_t>(__builtin_rintf(v[i]));
  return rounded;
#endif
}

// Whether dot_bytes() takes signed weights: else unsigned ones.
inline constexpr bool kSignedWeights = false;

// sum + the dot product of 4 unsigned and 4 signed bytes per lane; unsigned bytes are at most 255, signed ones above
// -128.
HIGGS_INLINE IntVec dot_bytes(IntVec sum, UIntVec unsigned_bytes, UIntVec signed_bytes) {
  const UIntVec even = unsigned_bytes & 0x00ff00ffu, odd = unsigned_bytes >> 8 & 0x00ff00ffu;
  const IntVec e = (IntVec)even, o = (IntVec)odd, v = (IntVec)signed_bytes;
  return sum + (e & 0xffff) * (v << 24 >> 24) + (o & 0xffff) * (v << 16 >> 24) + (e >> 16) * (v << 8 >> 24) +
         (o >> 16) * (v >> 24);
}

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
