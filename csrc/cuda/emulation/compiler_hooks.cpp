// What the compiler calls before each access of a kernel to memory, compiled as for ThreadSanitizer.
#include <cstdint>

#include "cuda/emulation/races.h"

using higgs_native::emulation::races::Access;
using higgs_native::emulation::races::access;

extern "C" {

#define HIGGS_NATIVE_HOOK(name, size, kind) \
  void __tsan_##name##size(void* at) { access(at, size, Access::kind, __builtin_return_address(0)); }
#define HIGGS_NATIVE_HOOKS(size)                \
  HIGGS_NATIVE_HOOK(read, size, read)           \
  HIGGS_NATIVE_HOOK(write, size, write)         \
  HIGGS_NATIVE_HOOK(unaligned_read, size, read) \
  HIGGS_NATIVE_HOOK(unaligned_write, size, write)
HIGGS_NATIVE_HOOKS(1)
HIGGS_NATIVE_HOOKS(2)
HIGGS_NATIVE_HOOKS(4)
HIGGS_NATIVE_HOOKS(8)
HIGGS_NATIVE_HOOKS(16)

void __tsan_read_range(void* at, unsigned long size) { access(at, size, Access::read, __builtin_return_address(0)); }
void __tsan_write_range(void* at, unsigned long size) { access(at, size, Access::write, __builtin_return_address(0)); }

// What the host's code in the kernels' files does; which of these it needs depends on the standard library.
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}

#define HIGGS_NATIVE_ATOMICS(bits, T)                                                                               \
  T __tsan_atomic##bits##_load(const volatile T* at, int) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }         \
  void __tsan_atomic##bits##_store(volatile T* at, T value, int) { __atomic_store_n(at, value, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_exchange(volatile T* at, T value, int) {                                                  \
    return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);                                                        \
  }                                                                                                                 \
  T __tsan_atomic##bits##_fetch_add(volatile T* at, T value, int) {                                                 \
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);                                                         \
  }                                                                                                                 \
  T __tsan_atomic##bits##_fetch_sub(volatile T* at, T value, int) {                                                 \
    return __atomic_fetch_sub(at, value, __ATOMIC_SEQ_CST);                                                         \
  }                                                                                                                 \
  bool __tsan_atomic##bits##_compare_exchange_strong(volatile T* at, T* expected, T value, int, int) {              \
    return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);             \
  }
HIGGS_NATIVE_ATOMICS(8, int8_t)
HIGGS_NATIVE_ATOMICS(32, int32_t)
HIGGS_NATIVE_ATOMICS(64, int64_t)
}
