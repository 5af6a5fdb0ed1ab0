// Loops over torch's thread pool, and memory that a thread keeps between calls.
#pragma once

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <vector>

#include "cpu/simd/isa.h"

namespace higgs_native::cpu {

// Min work, in multiply-adds, for which waking a thread pays: some microseconds.
inline constexpr int64_t kThreadCost = 32768;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// torch's parallel_for over [0, count).
template <typename F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
#if defined(__SANITIZE_THREAD__)
  // ThreadSanitizer does not see the barriers of the thread pool, so it is told of them. `ordered` is not instrumented:
  // it is read before the first of these calls.
  char barrier;
  __tsan_release(&barrier);
  auto ordered = [&](int64_t begin, int64_t end) __attribute__((no_sanitize("thread"))) {
    __tsan_acquire(&barrier);
    f(begin, end);
    __tsan_release(&barrier);
  };
  torch::stable::parallel_for(0, count, grain, ordered);
  __tsan_acquire(&barrier);
#else
  torch::stable::parallel_for(0, count, grain, f);
#endif
}

// Calls f(begin, end) for consecutive chunks of [0, count), an item costing about `cost` multiply-adds. Little work
// stays on the calling thread.
template <typename F>
void for_ranges(int64_t count, int64_t cost, const F& f) {
  active_isa();  // raises on the calling thread if HIGGS_NATIVE_ISA is wrong
  const int64_t grain = cost < kThreadCost ? kThreadCost / (cost > 0 ? cost : 1) : 1;
  if (count > grain) parallel_for(count, grain, f);
  else if (count > 0) f(int64_t{0}, count);
}

// Uninitialized floats that live until the thread's next call with the same tag. The memory is kept and grows.
template <typename Tag>
float* scratch(size_t size) {
  thread_local std::vector<float> memory;
  if (memory.size() < size) memory.resize(size);
  return memory.data();
}

}  // namespace higgs_native::cpu
