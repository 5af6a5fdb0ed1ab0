// Loops over torch's own thread pool, and memory that a thread keeps from call to call.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <vector>

namespace higgs_native::cpu {

// Calls f(begin, end) for consecutive pieces of [0, count), on one thread if count is 1.
template <typename F>
void for_ranges(int64_t count, const F& f) {
  if (count == 1) f(int64_t{0}, int64_t{1});
  else if (count > 0) torch::stable::parallel_for(0, count, 1, f);
}

// Uninitialised floats that live until the thread's next call with the same tag; the memory is kept and grows.
template <typename Tag>
float* scratch(size_t size) {
  thread_local std::vector<float> memory;
  if (memory.size() < size) memory.resize(size);
  return memory.data();
}

}  // namespace higgs_native::cpu
