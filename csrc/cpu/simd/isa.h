// The instruction set of the CPU kernels: the widest that the machine has, or the one that the environment variable
// HIGGS_NATIVE_ISA names. The variable is read once, at the first use.
#pragma once

#include <string>

namespace higgs_native::cpu {

// avx2 includes FMA and F16C; avx_vnni is avx2 with products of bytes; avx512 is F, BW, VL, DQ and VNNI; amx has tiles of
// bytes and of bfloat16; neon_bf16 has DotProd too, and neon_i8mm both.
enum class Isa { generic, avx2, avx_vnni, avx512, avx512_bf16, amx, neon, neon_dotprod, neon_bf16, neon_i8mm };
// Those that are built, from the narrowest to the widest.
#if defined(__x86_64__)
inline constexpr Isa kIsas[] = {Isa::generic, Isa::avx2, Isa::avx_vnni, Isa::avx512, Isa::avx512_bf16, Isa::amx};
#elif defined(__aarch64__)
inline constexpr Isa kIsas[] = {Isa::generic, Isa::neon, Isa::neon_dotprod, Isa::neon_bf16, Isa::neon_i8mm};
#else
inline constexpr Isa kIsas[] = {Isa::generic};
#endif

// Throws std::runtime_error if HIGGS_NATIVE_ISA names an unknown set or one that the machine lacks.
Isa active_isa();
bool isa_supported(Isa isa);
const char* isa_name(Isa isa);
// The features among avx2, avx_vnni, avx512, avx512_vnni, avx512_bf16 and amx, or dotprod, bf16 and i8mm, that the machine
// has, separated by spaces.
std::string cpu_features();

// Tells the core that the thread spins.
inline void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

}  // namespace higgs_native::cpu

// Declares table() of the given type: the kernels of the instruction set in use. Each set defines a table of that name
// in the namespace named after the set. Only the family linear multiplies bytes and uses tiles; others have no kernels of
// their own for the sets avx_vnni, amx and neon_i8mm.
#define HIGGS_NATIVE_DECLARE_TABLE(Type, table, isa) \
  namespace isa {                                    \
  extern const Type table;                           \
  }
#if defined(__x86_64__)
#define HIGGS_NATIVE_KERNEL_TABLE_UP_TO(vnni, widest, Type, table)                      \
  HIGGS_NATIVE_DECLARE_TABLE(Type, table, generic)                                      \
  HIGGS_NATIVE_DECLARE_TABLE(Type, table, avx2)                                         \
  HIGGS_NATIVE_DECLARE_TABLE(Type, table, avx512)                                       \
  HIGGS_NATIVE_DECLARE_TABLE(Type, table, avx512_bf16)                                  \
  inline const Type& table() {                                                          \
    static const Type& chosen = active_isa() == Isa::amx           ? widest::table      \
                                : active_isa() == Isa::avx512_bf16 ? avx512_bf16::table \
                                : active_isa() == Isa::avx512      ? avx512::table      \
                                : active_isa() == Isa::avx_vnni    ? vnni::table        \
                                : active_isa() == Isa::avx2        ? avx2::table        \
                                                                   : generic::table;    \
    return chosen;                                                                      \
  }
#define HIGGS_NATIVE_KERNEL_TABLE(Type, table) HIGGS_NATIVE_KERNEL_TABLE_UP_TO(avx2, avx512_bf16, Type, table)
#define HIGGS_NATIVE_KERNEL_TABLE_WITH_TILES(Type, table) \
  HIGGS_NATIVE_DECLARE_TABLE(Type, table, avx_vnni)       \
  HIGGS_NATIVE_DECLARE_TABLE(Type, table, amx)            \
  HIGGS_NATIVE_KERNEL_TABLE_UP_TO(avx_vnni, amx, Type, table)
#elif defined(__aarch64__)
#define HIGGS_NATIVE_KERNEL_TABLE_UP_TO(widest, Type, table)                              \
  HIGGS_NATIVE_DECLARE_TABLE(Type, table, generic)                                        \
  HIGGS_NATIVE_DECLARE_TABLE(Type, table, neon)                                           \
  HIGGS_NATIVE_DECLARE_TABLE(Type, table, neon_dotprod)                                   \
  HIGGS_NATIVE_DECLARE_TABLE(Type, table, neon_bf16)                                      \
  inline const Type& table() {                                                            \
    static const Type& chosen = active_isa() == Isa::neon_i8mm      ? widest::table       \
                                : active_isa() == Isa::neon_bf16    ? neon_bf16::table    \
                                : active_isa() == Isa::neon_dotprod ? neon_dotprod::table \
                                : active_isa() == Isa::neon         ? neon::table         \
                                                                    : generic::table;     \
    return chosen;                                                                        \
  }
#define HIGGS_NATIVE_KERNEL_TABLE(Type, table) HIGGS_NATIVE_KERNEL_TABLE_UP_TO(neon_bf16, Type, table)
#define HIGGS_NATIVE_KERNEL_TABLE_WITH_TILES(Type, table) \
  HIGGS_NATIVE_DECLARE_TABLE(Type, table, neon_i8mm)      \
  HIGGS_NATIVE_KERNEL_TABLE_UP_TO(neon_i8mm, Type, table)
#else
#define HIGGS_NATIVE_KERNEL_TABLE(Type, table)     \
  HIGGS_NATIVE_DECLARE_TABLE(Type, table, generic) \
  inline const Type& table() { return generic::table; }
#define HIGGS_NATIVE_KERNEL_TABLE_WITH_TILES HIGGS_NATIVE_KERNEL_TABLE
#endif
