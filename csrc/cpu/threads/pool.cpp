// One loop has the helpers at a time. Its caller opens it, and helpers that are awake join it; whoever has joined takes
// chunks until none is left. The caller then closes the loop and waits for the chunks that helpers still compute.
//
// A helper spins until the next loop, which mostly follows within microseconds, and then sleeps. A loop wakes it, and
// it joins that loop late, or the next one. Nobody yields the core: on a busy one that gives up a whole time slice.
#include "cpu/threads/pool.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#if __has_include(<pthread.h>)
#include <pthread.h>
#define HIGGS_NATIVE_HAS_FORK
#endif

#include "cpu/threads/quota.h"
#include "cpu/simd/isa.h"

namespace higgs_native::cpu {

namespace {

// About half a millisecond: longer than the time between two operators, or between two frames.
constexpr int kSpins = 10000;

// A thread that waits for another one: it spins, then sleeps.
class Patience {
 public:
  template <typename Sleep>
  void wait(const Sleep& sleep) {
    if (turns_ == kSpins) {
      sleep();
      return;
    }
    pause_core();
    ++turns_;
  }

 private:
  int turns_ = 0;
};

class ThreadPool {
 public:
  // Returns false if another loop has the helpers.
  bool run(const Loop& loop, int64_t threads) {
    std::unique_lock<std::mutex> turn(caller_, std::try_to_lock);
    if (!turn) return false;
    grow(threads - 1);
    loop_ = &loop;
    threads_ = threads;
    next_.store(0, std::memory_order_relaxed);
    failure_ = nullptr;
    // No helper has joined, so this is the only writer.
    const uint32_t generation = (state_.load(std::memory_order_relaxed) & kGenerations) + kGeneration;
    state_.store((generation & kGenerations) | kOpen, std::memory_order_release);
    state_.notify_all();

    take_chunks();
    state_.fetch_and(~kOpen, std::memory_order_relaxed);
    Patience patience;
    uint32_t state;
    while ((state = state_.load(std::memory_order_acquire)) & kJoined) {
      patience.wait([&] {
        state = state_.fetch_or(kWaiting, std::memory_order_acquire) | kWaiting;
        if (state & kJoined) state_.wait(state, std::memory_order_acquire);
      });
    }
    if (failure_) std::rethrow_exception(failure_);
    return true;
  }

 private:
  // Bits of `state_`: the helpers that have joined the loop, whether its caller sleeps until they are done, whether it
  // may be joined, and its number.
  static constexpr uint32_t kJoined = (1u << 12) - 1, kWaiting = 1u << 12, kOpen = 1u << 13, kGeneration = 1u << 14;
  static constexpr uint32_t kGenerations = ~(kGeneration - 1);
  static constexpr int64_t kMaxHelpers = 1024;

  void grow(int64_t helpers) {
    while (helpers_ < std::min(helpers, kMaxHelpers)) {
      try {
        std::thread([this, index = helpers_] { help(index); }).detach();
      } catch (const std::system_error&) {
        return;  // the system has no thread left: the caller computes more
      }
      ++helpers_;
    }
  }

  void help(int64_t index) {
    uint32_t last = ~uint32_t{0};
    Patience patience;
    for (;;) {
      uint32_t state = state_.load(std::memory_order_acquire);
      if (!(state & kOpen) || (state & kGenerations) == last) {
        patience.wait([&] { state_.wait(state, std::memory_order_acquire); });
        continue;
      }
      if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire)) continue;
      last = state & kGenerations;
      if (index < threads_ - 1) take_chunks();
      const uint32_t before = state_.fetch_sub(1, std::memory_order_release);
      if ((before & kJoined) == 1 && before & kWaiting) state_.notify_all();
      patience = Patience();
    }
  }

  void take_chunks() noexcept {
    const Loop& loop = *loop_;
    int64_t begin = next_.load(std::memory_order_relaxed);
    while (begin < loop.count) {
      // Chunks shrink, so that a slow or preempted thread delays the others little.
      int64_t chunk = std::max(loop.min_chunk, (loop.count - begin) / (2 * threads_));
      if (chunk > loop.multiple) chunk -= chunk % loop.multiple;
      const int64_t end = std::min(begin + chunk, loop.count);
      // If another thread was faster, `begin` is now its end.
      if (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
      try {
        loop.run(loop.body, begin, end);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(failing_);
        if (!failure_) failure_ = std::current_exception();
        next_.store(loop.count, std::memory_order_relaxed);
      }
      begin = next_.load(std::memory_order_relaxed);
    }
  }

  std::mutex caller_;
  int64_t helpers_ = 0;  // threads that were begun; they never end
  // Of the open loop. The caller writes them while no helper has joined.
  const Loop* loop_ = nullptr;
  int64_t threads_ = 1;
  std::exception_ptr failure_;
  std::mutex failing_;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> state_{0};
};

// Never freed: its threads may outlive static objects. A forked child has none of them, so it begins with a new pool.
std::atomic<ThreadPool*> current_pool{nullptr};

ThreadPool& pool() {
  static const bool created = [] {
    current_pool.store(new ThreadPool);
#ifdef HIGGS_NATIVE_HAS_FORK
    pthread_atfork(nullptr, nullptr, [] { current_pool.store(new ThreadPool); });
#endif
    return true;
  }();
  static_cast<void>(created);
  return *current_pool.load();
}

}  // namespace

int64_t num_threads() {
  static const int64_t quota = cpu_quota();
  const int64_t threads = torch::stable::get_num_threads();
  return quota > 0 ? std::min(threads, quota) : threads;
}

void run_loop(const Loop& loop, int64_t threads) {
  if (threads < 2 || !pool().run(loop, threads)) loop.run(loop.body, 0, loop.count);
}

}  // namespace higgs_native::cpu
