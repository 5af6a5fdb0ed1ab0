// One loop has the helpers at a time. Its caller opens it, and helpers that are awake join it; whoever has joined takes
// chunks until none is left. The caller then closes the loop and waits for the helpers that have joined.
//
// A helper spins until the next loop, which mostly follows within microseconds, and then sleeps. A loop wakes the helpers
// that it wants; one that wakes too late spins again and joins the next loop. Nobody yields the core while it spins: on a
// busy one that gives up a whole time slice.
#include "cpu/threads/pool.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#if __has_include(<pthread.h>)
#include <pthread.h>
#define HIGGS_NATIVE_HAS_FORK
#endif
#if defined(__linux__)
#include <sched.h>
#endif

#include "cpu/simd/isa.h"
#include "cpu/threads/quota.h"

namespace higgs_native::cpu {

namespace {

using Clock = std::chrono::steady_clock;

// Longer than the time between two operators, or between two frames.
constexpr std::chrono::microseconds kSpinTime(500);
constexpr int kSpinsPerLook = 64;  // at the clock

// A thread that waits for another one: it spins, then sleeps, then spins again.
class Patience {
 public:
  template <typename Sleep>
  void wait(const Sleep& sleep) {
    if (++turns_ % kSpinsPerLook == 0 && Clock::now() - begin_ > kSpinTime) {
      sleep();
      begin_ = Clock::now();
      return;
    }
    pause_core();
  }

 private:
  Clock::time_point begin_ = Clock::now();
  unsigned turns_ = 0;
};

class ThreadPool {
 public:
  // Returns false if another loop has the helpers.
  bool run(const Loop& loop, int64_t threads) {
    std::unique_lock<std::mutex> turn(caller_, std::try_to_lock);
    if (!turn) return false;
    grow(threads - 1);
    loop_ = &loop;
    wanted_.store(std::min(threads - 1, helpers_), std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    failure_ = nullptr;
    // No helper has joined, so this is the only writer.
    const uint32_t generation = (state_.load(std::memory_order_relaxed) & kGenerations) + kGeneration;
    // Ordered before the reads of `sleeps`, as a helper's write of it is before its last look at the loop: one of the two
    // sees the other.
    state_.store((generation & kGenerations) | kOpen, std::memory_order_seq_cst);
    for (int64_t i = 0; i < wanted_.load(std::memory_order_relaxed); ++i) wake(sleepers_[i]);

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

  struct alignas(64) Sleeper {
    std::atomic<uint32_t> sleeps{0};
  };

  static void wake(Sleeper& sleeper) {
    if (sleeper.sleeps.load(std::memory_order_seq_cst) == 0) return;
    sleeper.sleeps.store(0, std::memory_order_release);
    sleeper.sleeps.notify_one();
  }

  void grow(int64_t helpers) {
    while (helpers_ < std::min(helpers, max_helpers_)) {
      try {
        std::thread([this, index = helpers_] { help(index); }).detach();
      } catch (const std::system_error&) {
        max_helpers_ = helpers_;  // the system has no thread left: the caller computes more
        return;
      }
      ++helpers_;
    }
  }

  // Whether helper `index` may join the loop of `state`, given the last one that it had.
  bool may_join(uint32_t state, uint32_t last, int64_t index) const {
    return state & kOpen && (state & kGenerations) != last && index < wanted_.load(std::memory_order_relaxed);
  }

  void help(int64_t index) {
    uint32_t last = ~uint32_t{0};
    Sleeper& me = sleepers_[index];
    Patience patience;
    for (;;) {
      uint32_t state = state_.load(std::memory_order_acquire);
      if (!may_join(state, last, index)) {
        patience.wait([&] {
          me.sleeps.store(1, std::memory_order_seq_cst);
          if (may_join(state_.load(std::memory_order_seq_cst), last, index)) me.sleeps.store(0);
          else me.sleeps.wait(1);
        });
        continue;
      }
      if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire)) continue;
      last = state & kGenerations;
      if (index < wanted_.load(std::memory_order_relaxed)) take_chunks();
      const uint32_t before = state_.fetch_sub(1, std::memory_order_release);
      if ((before & kJoined) == 1 && before & kWaiting) state_.notify_all();
      patience = Patience();
    }
  }

  void take_chunks() noexcept {
    const Loop& loop = *loop_;
    const int64_t threads = wanted_.load(std::memory_order_relaxed) + 1;
    int64_t begin = next_.load(std::memory_order_relaxed);
    while (begin < loop.count) {
      // Chunks shrink, so that a slow or preempted thread delays the others little.
      int64_t chunk = std::max(loop.min_chunk, (loop.count - begin) / (2 * threads));
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
  // Threads that were begun; they never end.
  int64_t helpers_ = 0, max_helpers_ = kMaxHelpers;
  std::unique_ptr<Sleeper[]> sleepers_{new Sleeper[kMaxHelpers]};
  // State of the open loop. The caller writes it while no helper has joined; helpers read `wanted_` before they join.
  const Loop* loop_ = nullptr;
  std::atomic<int64_t> wanted_{0};  // the first helpers
  std::exception_ptr failure_;
  std::mutex failing_;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> state_{0};
};

// Never freed: its threads may outlive static objects. A forked child has none of them, so it begins with a new pool.
std::atomic<ThreadPool*> current_pool{nullptr};

ThreadPool& pool() {
#ifdef HIGGS_NATIVE_HAS_FORK
  static const int registered = pthread_atfork(nullptr, nullptr, [] { current_pool.store(nullptr); });
  static_cast<void>(registered);
#endif
  ThreadPool* found = current_pool.load();
  if (found) return *found;
  auto made = std::make_unique<ThreadPool>();
  if (current_pool.compare_exchange_strong(found, made.get())) return *made.release();
  return *found;
}

// The CPUs that the calling thread may run on, and so the helpers that it begins. OpenMP may have bound it to one.
int64_t allowed_cpus() {
#if defined(__linux__)
  cpu_set_t cpus;
  if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) return std::max(CPU_COUNT(&cpus), 1);
#endif
  return INT64_MAX;  // more than a set holds, or unknown
}

}  // namespace

int64_t num_threads() {
  static const int64_t quota = cpu_quota();
  thread_local const int64_t allowed = allowed_cpus();
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), allowed);
  return quota > 0 ? std::min(threads, quota) : threads;
}

void run_loop(const Loop& loop, int64_t threads) {
  if (threads < 2 || !pool().run(loop, threads)) loop.run(loop.body, 0, loop.count);
}

}  // namespace higgs_native::cpu
