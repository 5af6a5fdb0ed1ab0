// The coroutines behind emulation.h. A thread of a block keeps its stack and runs the kernel again for the next block.
#include "cuda/emulation/emulation.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace higgs_native::emulation {

Registers registers;

void fail(const char* message) {
  std::fprintf(stderr, "CUDA emulation: %s\n", message);
  std::abort();
}

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kSharedBytes = 232448;  // the most that a block can have, of any architecture
constexpr size_t kPageBytes = 4096;

enum class Waiting { nothing, warp, block, finished };

// An asynchronous copy; zeros from null.
struct Copy {
  void* to;
  const void* from;
  int bytes, group;
};

struct Thread {
  jmp_buf at;
  Waiting waiting = Waiting::finished;
  bool started = false;
  uint64_t round = 0;                            // of its warp's collectives
  std::vector<Copy> copies;                      // that it has begun, and that are not there yet
  int groups_of_copies = 0;                      // that it has ended
  std::deque<std::pair<Product, int>> products;  // that it has begun, with their groups
  int groups_of_products = 0;                    // that it has ended
  void* stack;
  ucontext_t first;  // enters the stack once; later switches jump
};

struct Warp {
  uint64_t round = 0;
  int arrived = 0, live = 0;
  uint64_t values[2][kWarp];  // of this round and of the one before, which some may still read
  Fragment fragments[2][kWarp];
};

std::vector<Thread*> threads;
std::vector<Warp> warps;
jmp_buf scheduler;
Thread* current;
const std::function<void()>* kernel_of_launch;
int at_barrier, live_threads;
std::mt19937 order(0);
std::mutex mutex;  // of all that is here, and of races.cpp

void leave(Waiting waiting) {
  current->waiting = waiting;
  if (_setjmp(current->at) == 0) _longjmp(scheduler, 1);
}

// Completes the thread's copies of the groups before `end`.
void complete_copies(int end, const void* code) {
  std::vector<Copy>& copies = current->copies;
  const auto left = std::find_if(copies.begin(), copies.end(), [&](const Copy& copy) { return copy.group >= end; });
  for (auto copy = copies.begin(); copy != left; ++copy) {
    races::access(copy->to, copy->bytes, races::Access::write, code);
    if (copy->from) std::memcpy(copy->to, copy->from, copy->bytes);
    else std::memset(copy->to, 0, copy->bytes);
  }
  copies.erase(copies.begin(), left);
}

// A warp's collective is complete once all that live have arrived.
void complete(Warp& warp) {
  if (warp.live == 0 || warp.arrived < warp.live) return;
  warp.arrived = 0;
  ++warp.round;
  std::memset(warp.values[warp.round % 2], 0, sizeof warp.values[0]);
}

void body() {
  for (;;) {
    (*kernel_of_launch)();
    races::end_thread();
    if (!current->copies.empty()) fail("a thread returned before what it began to copy was there");
    if (!current->products.empty()) fail("a thread returned before the products that it began were there");
    const unsigned index = registers.thread.x;
    Warp& warp = warps[index / kWarp];
    --warp.live;
    --live_threads;
    complete(warp);
    leave(Waiting::finished);
  }
}

void resume(unsigned index, dim3 block) {
  current = threads[index];
  registers.thread = dim3(index);
  registers.block = block;
  if (_setjmp(scheduler) != 0) return races::pause();
  races::resume(index, current->stack, kStackBytes);
  if (current->started) _longjmp(current->at, 1);
  current->started = true;
  setcontext(&current->first);
}

Thread* new_thread() {
  auto* thread = new Thread;
  thread->stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (thread->stack == MAP_FAILED) fail("no memory for a thread");
  getcontext(&thread->first);
  thread->first.uc_stack.ss_sp = thread->stack;
  thread->first.uc_stack.ss_size = kStackBytes;
  thread->first.uc_link = nullptr;
  makecontext(&thread->first, body, 0);
  return thread;
}

bool can_run(const Thread& thread, const Warp& warp) {
  return thread.waiting == Waiting::nothing || (thread.waiting == Waiting::warp && thread.round < warp.round);
}

void run_block(dim3 block, unsigned size) {
  const unsigned num_warps = (size + kWarp - 1) / kWarp;
  warps.assign(num_warps, {});
  for (unsigned i = 0; i < size; ++i) {
    threads[i]->waiting = Waiting::nothing;
    threads[i]->round = 0;
    ++warps[i / kWarp].live;
  }
  at_barrier = 0;
  live_threads = static_cast<int>(size);
  std::vector<unsigned> turns(num_warps);
  std::iota(turns.begin(), turns.end(), 0u);
  while (live_threads > 0) {
    std::shuffle(turns.begin(), turns.end(), order);
    bool moved = false;
    for (unsigned w : turns) {
      // A warp runs until all its threads have returned or wait for the block.
      for (bool again = true; again;) {
        again = false;
        for (unsigned i = w * kWarp; i < std::min(size, (w + 1) * kWarp); ++i) {
          if (!can_run(*threads[i], warps[w])) continue;
          threads[i]->waiting = Waiting::nothing;
          resume(i, block);
          again = moved = true;
        }
      }
    }
    if (at_barrier == live_threads) {
      at_barrier = 0;
      races::block_barrier();
      for (unsigned i = 0; i < size; ++i) {
        if (threads[i]->waiting == Waiting::block) threads[i]->waiting = Waiting::nothing;
      }
    } else if (!moved) {
      fail("some threads wait at a barrier that the others never reach");
    }
  }
}

}  // namespace

uint32_t begin_operator() {
  const std::lock_guard<std::mutex> lock(mutex);
  return races::begin_operator();
}

void run(
    const char* op, uint32_t call, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (block.y != 1 || block.z != 1) fail("blocks must have one dimension");
  if (block.x == 0 || block.x > 1024) fail("a block must have 1 to 1,024 threads");
  if (grid.x == 0 || grid.x > INT32_MAX || grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535) {
    fail("a grid must have 1 to 2^31 - 1 blocks along x, and 1 to 65,535 along y and z");
  }
  if (shared_bytes > kSharedBytes) fail("a block asks for more shared memory than there is");
  // In pages of its own, for races.h.
  constexpr size_t kPages = (kSharedBytes + kPageBytes - 1) / kPageBytes;
  static auto* shared = static_cast<char*>(std::aligned_alloc(kPageBytes, kPages * kPageBytes));
  registers.shared_memory = shared;
  while (threads.size() < block.x) threads.push_back(new_thread());
  registers.block_dim = block;
  registers.grid_dim = grid;
  kernel_of_launch = &kernel;
  races::begin_launch(op, call, block.x, shared, kSharedBytes);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        // A block must not rely on what the block before it left in shared memory.
        std::memset(shared, 0xff, shared_bytes);
        races::begin_block();
        run_block(dim3(x, y, z), block.x);
        races::end_block();
      }
    }
  }
  races::end_launch();
}

bool record_launch(
    const char* op, const void* kernel, dim3 grid, int threads, size_t shared_bytes, int64_t prefetched_bytes) {
  const char* path = std::getenv("HIGGS_NATIVE_RECORD_LAUNCHES");
  if (!path || !*path) return false;
  Dl_info library;
  std::FILE* file = std::fopen(path, "a");
  if (!file) throw std::runtime_error(std::string("HIGGS_NATIVE_RECORD_LAUNCHES must be a writable file, got ") + path);
  if (dladdr(kernel, &library) == 0) fail("a kernel must lie in a library");
  const auto address = static_cast<const char*>(kernel) - static_cast<const char*>(library.dli_fbase);
  std::fprintf(
      file, "%s %tx %u %u %u %d %zu %lld\n", op, address, grid.x, grid.y, grid.z, threads, shared_bytes,
      static_cast<long long>(prefetched_bytes));
  std::fclose(file);
  return true;
}

void prefetch(const void* from, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0 || bytes % 16 != 0) fail("a prefetch must be of aligned 16 bytes");
  const auto* memory = static_cast<const volatile char*>(from);
  if (bytes > 0) static_cast<void>(memory[0] + memory[bytes - 1]);
}

void wait_for_block() {
  ++at_barrier;
  leave(Waiting::block);
}

void copy_async(void* to, const void* from, int bytes) {
  const void* code = __builtin_return_address(0);
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0) {
    fail("an asynchronous copy must be aligned to its size");
  }
  races::access(to, bytes, races::Access::write, code);
  if (from) races::access(from, bytes, races::Access::read, code);
  std::memset(to, 0xff, bytes);
  current->copies.push_back({to, from, bytes, current->groups_of_copies});
}

void wait_for_copies() { complete_copies(current->groups_of_copies + 1, __builtin_return_address(0)); }

void end_group_of_copies() { ++current->groups_of_copies; }

void wait_for_groups_of_copies(int left) {
  complete_copies(current->groups_of_copies - left, __builtin_return_address(0));
}

void begin_product(const Product& product) { current->products.emplace_back(product, current->groups_of_products); }

void end_group_of_products() { ++current->groups_of_products; }

void wait_for_groups_of_products(int left) {
  auto& products = current->products;
  while (!products.empty() && products.front().second < current->groups_of_products - left) {
    const Product& product = products.front().first;
    product.compute(product);
    products.pop_front();
  }
}

namespace {

// Waits for the other threads of a warp, and returns which of the two rounds has their values.
uint64_t arrive_and_wait(Warp& warp) {
  const uint64_t round = warp.round;
  ++warp.arrived;
  complete(warp);
  current->round = round;
  if (warp.round == round) leave(Waiting::warp);
  return round % 2;
}

}  // namespace

const uint64_t* exchange(uint64_t value) {
  Warp& warp = warps[registers.thread.x / kWarp];
  warp.values[warp.round % 2][lane()] = value;
  return warp.values[arrive_and_wait(warp)];
}

const Fragment* exchange(const Fragment& own) {
  Warp& warp = warps[registers.thread.x / kWarp];
  warp.fragments[warp.round % 2][lane()] = own;
  return warp.fragments[arrive_and_wait(warp)];
}

}  // namespace higgs_native::emulation
