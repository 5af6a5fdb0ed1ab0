// Loops over torch's thread pool, and memory that a thread keeps between calls.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <vector>

#include "cpu/simd/isa.h"

namespace higgs_native::cpu {

// Min work, in multiply-adds, for which waking a thread pays: some microseconds.
inline constexpr int64_t kThreadCost = 32768;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls f(begin, end) for consecutive chunks of [0, count), an item costing about `cost` multiply-adds. Little work
// stays on the calling thread.
template <typename F>
void for_ranges(int64_t count, int64_t cost, const F& f) {
  active_isa();  // raises on the calling thread if HIGGS_NATIVE_ISA is wrong
  const int64_t grain = cost < kThreadCost ? kThreadCost / (cost > 0 ? cost : 1) : 1;
  if (count > grain) torch::stable::parallel_for(0, count, grain, f);
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
