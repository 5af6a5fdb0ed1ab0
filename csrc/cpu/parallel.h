// Loops over torch's own thread pool, and memory that a thread keeps from call to call.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <vector>

#include "cpu/simd/isa.h"

namespace higgs_native::cpu {

// What a thread must have to do, in multiply-adds, before waking it pays: some microseconds.
inline constexpr int64_t kThreadCost = 32768;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls f(begin, end) for consecutive pieces of [0, count). An item costs about `cost` multiply-adds; a small model's
// products stay on the calling thread.
template <typename F>
void for_ranges(int64_t count, int64_t cost, const F& f) {
  active_isa();  // raises here, on the calling thread, where HIGGS_NATIVE_ISA can't be followed
  const int64_t grain = cost < kThreadCost ? kThreadCost / (cost > 0 ? cost : 1) : 1;
  if (count > grain) torch::stable::parallel_for(0, count, grain, f);
  else if (count > 0) f(int64_t{0}, count);
}

// Uninitialised floats that live until the thread's next call with the same tag; the memory is kept and grows.
template <typename Tag>
float* scratch(size_t size) {
  thread_local std::vector<float> memory;
  if (memory.size() < size) memory.resize(size);
  return memory.data();
}

}  // namespace higgs_native::cpu
