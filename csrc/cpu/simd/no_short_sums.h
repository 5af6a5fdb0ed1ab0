// A set that adds products of bytes in 32 bits at once.
#pragma once

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

inline constexpr int kShortSumTimes = 0;
struct ShortSums;

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
