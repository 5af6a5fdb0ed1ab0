// float16 scalars of the sets with F16C.
#pragma once

#include <immintrin.h>

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

HIGGS_INLINE float to_float(float16 x) { return _cvtsh_ss(x.bits); }

// Rounds to nearest even; infinity above 65504.
HIGGS_INLINE void store_value(float16* p, float x) {
  p->bits = static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
}

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
