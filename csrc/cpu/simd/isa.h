// Which instruction set the CPU kernels use: the widest that the machine has, or the one that the environment variable
// HIGGS_NATIVE_ISA names (generic, avx2, avx512, avx512_bf16). Read once, at the first use.
#pragma once

#include <string>

namespace higgs_native::cpu {

// avx2 comes with FMA and F16C, avx512 with F, BW, VL, DQ and VNNI.
enum class Isa { generic, avx2, avx512, avx512_bf16 };
#if defined(__x86_64__)
inline constexpr Isa kIsas[] = {Isa::generic, Isa::avx2, Isa::avx512, Isa::avx512_bf16};
#else
inline constexpr Isa kIsas[] = {Isa::generic};
#endif

// Throws std::runtime_error where HIGGS_NATIVE_ISA names no known set or one that the machine lacks.
Isa active_isa();
bool isa_supported(Isa isa);
const char* isa_name(Isa isa);
// The features that matter here, space-separated: avx2 avx512 avx512_vnni avx512_bf16 amx_bf16.
std::string cpu_features();

}  // namespace higgs_native::cpu

// Declares table() of the given type: the kernels of the instruction set in use. Each set's own table, of the same name,
// stands in the namespace named after the set.
#if defined(__x86_64__)
#define HIGGS_NATIVE_KERNEL_TABLE(Type, table)                                        \
  namespace generic {                                                                 \
  extern const Type table;                                                            \
  }                                                                                   \
  namespace avx2 {                                                                    \
  extern const Type table;                                                            \
  }                                                                                   \
  namespace avx512 {                                                                  \
  extern const Type table;                                                            \
  }                                                                                   \
  namespace avx512_bf16 {                                                             \
  extern const Type table;                                                            \
  }                                                                                   \
  inline const Type& table() {                                                        \
    static const Type& chosen = active_isa() == Isa::avx512_bf16 ? avx512_bf16::table \
                                : active_isa() == Isa::avx512    ? avx512::table      \
                                : active_isa() == Isa::avx2      ? avx2::table        \
                                                                 : generic::table;    \
    return chosen;                                                                    \
  }
#else
#define HIGGS_NATIVE_KERNEL_TABLE(Type, table) \
  namespace generic {                          \
  extern const Type table;                     \
  }                                            \
  inline const Type& table() { return generic::table; }
#endif
