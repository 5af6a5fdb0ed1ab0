// Products of bytes with AVX-VNNI.
#pragma once

#include <immintrin.h>

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

inline constexpr bool kSignedWeights = false;

// sum + the dot product of 4 unsigned and 4 signed bytes per lane.
HIGGS_INLINE IntVec dot_bytes(IntVec sum, UIntVec unsigned_bytes, UIntVec signed_bytes) {
  return (IntVec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)unsigned_bytes, (__m256i)signed_bytes);
}

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
