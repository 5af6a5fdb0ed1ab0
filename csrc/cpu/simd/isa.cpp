#include "cpu/simd/isa.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace higgs_native::cpu {

namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports knows no F16C. It also checks that the operating system saves the wide registers.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }

// __builtin_cpu_supports of old compilers does not know it.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// Linux gives a process tiles if it asks for them.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBFloat16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBFloat16 | kTile | kInt8;
  static const bool has =
      has_avx512_bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAll) == kAll && may_use_tiles();
  return has;
}
#else
bool has_avx2() { return false; }
bool has_avx_vnni() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
bool has_amx() { return false; }
#endif

#if defined(__aarch64__) && defined(__linux__)
// Bits of the Linux kernel's interface, which old headers lack.
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool has_bf16() { return getauxval(AT_HWCAP2) >> 14 & 1; }
bool has_i8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }
#elif defined(__aarch64__) && defined(__APPLE__)
bool has_feature(const char* name) {
  int value = 0;
  size_t bytes = sizeof value;
  return sysctlbyname(name, &value, &bytes, nullptr, 0) == 0 && value != 0;
}

bool has_dotprod() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
bool has_bf16() { return has_feature("hw.optional.arm.FEAT_BF16"); }
bool has_i8mm() { return has_feature("hw.optional.arm.FEAT_I8MM"); }
#else
bool has_dotprod() { return false; }
bool has_bf16() { return false; }
bool has_i8mm() { return false; }
#endif

// "a, b or c", of the sets that are built.
std::string isa_choices() {
  std::string names;
  for (size_t i = 0; i < std::size(kIsas); ++i) {
    if (i > 0) names += i + 1 == std::size(kIsas) ? " or " : ", ";
    names += isa_name(kIsas[i]);
  }
  return names;
}

Isa choose() {
  const char* forced = std::getenv("HIGGS_NATIVE_ISA");
  if (forced == nullptr || *forced == '\0') {
    return *std::find_if(std::rbegin(kIsas), std::rend(kIsas), isa_supported);
  }
  for (Isa isa : kIsas) {
    if (std::string(forced) != isa_name(isa)) continue;
    if (!isa_supported(isa)) {
      throw std::runtime_error("HIGGS_NATIVE_ISA must be a set of this machine, got " + std::string(forced));
    }
    return isa;
  }
  throw std::runtime_error("HIGGS_NATIVE_ISA must be " + isa_choices() + ", got " + std::string(forced));
}

}  // namespace

bool isa_supported(Isa isa) {
  switch (isa) {
    case Isa::generic: return true;
    case Isa::avx2: return has_avx2();
    case Isa::avx_vnni: return has_avx_vnni();
    case Isa::avx512: return has_avx512();
    case Isa::avx512_bf16: return has_avx512_bf16();
    case Isa::amx: return has_amx();
    // NEON is part of every 64-bit ARM processor.
    case Isa::neon: return std::find(std::begin(kIsas), std::end(kIsas), Isa::neon) != std::end(kIsas);
    case Isa::neon_dotprod: return has_dotprod();
    case Isa::neon_bf16: return has_dotprod() && has_bf16();
    case Isa::neon_i8mm: return has_dotprod() && has_bf16() && has_i8mm();
  }
  return false;
}

const char* isa_name(Isa isa) {
  constexpr const char* kNames[] = {"generic", "avx2", "avx_vnni",     "avx512",    "avx512_bf16",
                                    "amx",     "neon", "neon_dotprod", "neon_bf16", "neon_i8mm"};
  return kNames[static_cast<int>(isa)];
}

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

std::string cpu_features() {
  std::string features;
  [[maybe_unused]] auto add = [&](const char* name, bool present) {
    if (present) features.append(features.empty() ? "" : " ").append(name);
  };
#if defined(__x86_64__)
  add("avx2", has_avx2());
  add("avx_vnni", has_avx_vnni());
  add("avx512", has_avx512());
  add("avx512_vnni", __builtin_cpu_supports("avx512vnni"));
  add("avx512_bf16", has_avx512_bf16());
  add("amx", has_amx());
#elif defined(__aarch64__)
  add("dotprod", has_dotprod());
  add("bf16", has_bf16());
  add("i8mm", has_i8mm());
#endif
  return features;
}

}  // namespace higgs_native::cpu
