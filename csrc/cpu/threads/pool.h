// The threads that help a calling thread with its loops.
#pragma once

#include <cstdint>

namespace higgs_native::cpu {

// A loop over [0, count), and how a thread may cut it.
struct Loop {
  void (*run)(const void* body, int64_t begin, int64_t end);
  const void* body;
  int64_t count;
  int64_t min_chunk;
  int64_t multiple;  // of a chunk longer than it
};

// The threads of a loop, the calling one included: as many as torch has for the caller, but not more than the CPUs that
// the caller may run on, or than the process may keep busy (its CPU quota, rounded up).
int64_t num_threads();

// Runs a loop on the calling thread and on up to `threads` - 1 helpers. Each takes one chunk after the other. The caller
// waits for the helpers that have joined the loop and for no others: on a busy machine it computes alone what no helper
// takes. If the helpers work for another caller, the loop runs on the calling thread alone.
// Throws what the first failing chunk threw.
void run_loop(const Loop& loop, int64_t threads);

}  // namespace higgs_native::cpu
