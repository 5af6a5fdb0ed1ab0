// Which instruction set the CPU kernels use: the widest that the machine has, or the one that the environment variable
// HIGGS_NATIVE_ISA names (generic, avx2, avx512). Read once, at the first use.
#pragma once

#include <string>

namespace higgs_native::cpu {

enum class Isa { generic, avx2, avx512 };

// Throws std::runtime_error where HIGGS_NATIVE_ISA names no known set or one that the machine lacks.
Isa active_isa();
bool isa_supported(Isa isa);
const char* isa_name(Isa isa);
// The features that matter here, space-separated: avx2 avx512 avx512_bf16 avx512_vnni amx_bf16.
std::string cpu_features();

}  // namespace higgs_native::cpu
