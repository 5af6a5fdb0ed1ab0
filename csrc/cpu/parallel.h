// Loops over threads, and memory that a thread keeps between calls.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/simd/isa.h"
#include "cpu/threads/pool.h"

namespace higgs_native::cpu {

// In multiply-adds. Below `kSharedWork` a loop stays on the calling thread: tens of microseconds, after which a second
// thread has gained nothing on an idle machine and costs time slices on a busy one. A chunk has `kChunkWork` at least.
inline constexpr int64_t kSharedWork = 1 << 20, kChunkWork = 1 << 16;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls f(begin, end) for consecutive chunks of [0, count), an item costing about `cost` multiply-adds. Chunks longer
// than `multiple` are multiples of it, but for the last one. Little work stays on the calling thread.
template <typename F>
void for_ranges(int64_t count, int64_t cost, const F& f, int64_t multiple = 1) {
  active_isa();  // raises on the calling thread if HIGGS_NATIVE_ISA is wrong
  if (count <= 0) return;
  cost = std::max<int64_t>(cost, 1);
  const int64_t min_chunk = ceil_div(kChunkWork, cost);
  if (count <= min_chunk || count < kSharedWork / cost) {
    f(int64_t{0}, count);
    return;
  }
  auto run = [](const void* body, int64_t begin, int64_t end) { (*static_cast<const F*>(body))(begin, end); };
  run_loop({run, &f, count, min_chunk, multiple}, std::min(num_threads(), ceil_div(count, min_chunk)));
}

// Uninitialized floats that live until the thread's next call with the same tag. The memory is kept and grows.
template <typename Tag>
float* scratch(size_t size) {
  thread_local std::vector<float> memory;
  if (memory.size() < size) memory.resize(size);
  return memory.data();
}

}  // namespace higgs_native::cpu
