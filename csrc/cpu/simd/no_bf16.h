// A set without products of bfloat16: kernels widen bfloat16 and e4m3 to float32.
#pragma once

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

inline constexpr bool kHasBFloat16Pairs = false;
struct BFloat16Pairs;

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
