// Kernels with one fault each, and without it where `mended`: what races.h promises to find is tested with them
// (tests/ops/test_cuda_races.py). All write to `memory`, int32, zeros at first.
#include <torch/csrc/stable/library.h>

#include <string>
#include <string_view>

#include "cuda/launch.h"

namespace higgs_native::cuda {

namespace {

constexpr int kThreads = 64;

__device__ int neighbour(int by) { return (static_cast<int>(threadIdx.x) + by) % kThreads; }

// ---- Threads of a block

__global__ void missing_barrier_kernel(int32_t* memory, bool mended) {
  __shared__ int32_t values[kThreads];
  wait_for_earlier_launches();
  values[threadIdx.x] = 1;
  if (mended) __syncthreads();
  memory[threadIdx.x] = values[neighbour(kWarp)];
}

__global__ void missing_second_barrier_kernel(int32_t* memory, bool mended) {
  __shared__ int32_t values[kThreads];
  wait_for_earlier_launches();
  values[threadIdx.x] = 1;
  __syncthreads();
  const int32_t value = values[neighbour(1)];
  if (mended) __syncthreads();
  values[threadIdx.x] = 2;
  memory[threadIdx.x] = value;
}

__global__ void missing_barrier_of_global_memory_kernel(int32_t* memory, bool mended) {
  wait_for_earlier_launches();
  memory[threadIdx.x] = 1;
  if (mended) __syncthreads();
  memory[kThreads + threadIdx.x] = memory[neighbour(kWarp)];
}

// A shuffle brings lanes together, but orders no memory.
__global__ void missing_warp_barrier_kernel(int32_t* memory, bool mended) {
  __shared__ int32_t values[kThreads];
  wait_for_earlier_launches();
  values[threadIdx.x] = 1;
  int32_t sum = warp_sum(static_cast<int32_t>(threadIdx.x));
  if (mended) __syncwarp();
  sum += values[threadIdx.x ^ 1];
  memory[threadIdx.x] = sum;
}

// __syncwarp orders a warp, not a block.
__global__ void warp_barrier_for_block_kernel(int32_t* memory, bool mended) {
  __shared__ int32_t values[kThreads];
  wait_for_earlier_launches();
  values[threadIdx.x] = 1;
  if (mended) __syncthreads();
  else __syncwarp();
  memory[threadIdx.x] = values[neighbour(kWarp)];
}

__global__ void same_value_kernel(int32_t* memory, bool mended) {
  __shared__ int32_t value;
  wait_for_earlier_launches();
  if (!mended || threadIdx.x == 0) value = 1;
  __syncthreads();
  memory[threadIdx.x] = value;
}

// Neighbouring bytes are no race; the same byte is one.
__global__ void same_byte_kernel(int32_t* memory, bool mended) {
  wait_for_earlier_launches();
  reinterpret_cast<int8_t*>(memory)[mended ? threadIdx.x : threadIdx.x / 2] = 1;
}

__global__ void atomic_and_write_kernel(int32_t* memory, bool mended) {
  wait_for_earlier_launches();
  atomicAdd(memory, 1);
  if (mended) __syncthreads();
  if (threadIdx.x == 0) memory[0] = 1;
}

// After its copy is complete, a thread sees the data; the other threads don't.
__global__ void missing_barrier_of_copies_kernel(int32_t* memory, bool mended) {
  __shared__ float values[kThreads];
  wait_for_earlier_launches();
  copy_async(values + threadIdx.x, reinterpret_cast<float*>(memory) + threadIdx.x, true);
  wait_for_copies();
  if (mended) __syncthreads();
  memory[kThreads + threadIdx.x] = values[neighbour(kWarp)] == 0;
}

// Only the first of two groups of copies is waited for.
__global__ void later_group_of_copies_kernel(int32_t* memory, bool mended) {
  __shared__ float values[2 * kThreads];
  wait_for_earlier_launches();
  for (int group = 0; group < 2; ++group) {
    copy_async(values + group * kThreads + threadIdx.x, reinterpret_cast<float*>(memory) + threadIdx.x, true);
    end_group_of_copies();
  }
  if (mended) wait_for_groups_of_copies<0>();
  else wait_for_groups_of_copies<1>();
  __syncthreads();
  const bool first_is_there = values[neighbour(kWarp)] == 0;
  memory[kThreads + threadIdx.x] = first_is_there && values[kThreads + neighbour(kWarp)] == 0;
  wait_for_copies();
}

// ---- Shared memory that nobody has written

__global__ void unwritten_shared_kernel(int32_t* memory, bool mended) {
  __shared__ int32_t values[kThreads];
  wait_for_earlier_launches();
  if (mended || blockIdx.x == 0) values[threadIdx.x] = 1;
  __syncthreads();
  memory[blockIdx.x * kThreads + threadIdx.x] = values[threadIdx.x];
}

__global__ void unwritten_dynamic_shared_kernel(int32_t* memory, bool mended) {
  auto* values = reinterpret_cast<int32_t*>(dynamic_shared());
  wait_for_earlier_launches();
  if (mended || blockIdx.x == 0) values[threadIdx.x] = 1;
  __syncthreads();
  memory[blockIdx.x * kThreads + threadIdx.x] = values[threadIdx.x];
}

// ---- Blocks of a launch

__global__ void overlapping_blocks_kernel(int32_t* memory, bool mended) {
  wait_for_earlier_launches();
  memory[blockIdx.x * (mended ? kThreads : kThreads - 1) + threadIdx.x] = 1;
}

__global__ void block_reads_another_kernel(int32_t* memory, bool mended) {
  wait_for_earlier_launches();
  const int other = mended ? static_cast<int>(blockIdx.x) : 0;
  if (threadIdx.x == 0) memory[blockIdx.x] = 1;
  __syncthreads();
  memory[(1 + blockIdx.x) * kThreads + threadIdx.x] = memory[other];
}

enum class LastBlock { good, no_fence_before, one_fence_before, no_fence_behind, no_barrier_before };

// Each block writes; the last one to arrive reads it all.
template <LastBlock kFault>
__global__ void last_block_kernel(int32_t* memory, bool mended) {
  __shared__ bool is_last;
  wait_for_earlier_launches();
  const auto fault = mended ? LastBlock::good : kFault;
  int32_t* values = memory + 1 + kThreads;
  values[blockIdx.x * kThreads + threadIdx.x] = 1;
  // A fence of thread 0 before the barrier covers what it has written itself, and no other thread's.
  if (fault == LastBlock::one_fence_before ? threadIdx.x == 0 : fault != LastBlock::no_fence_before) __threadfence();
  if (fault != LastBlock::no_barrier_before) __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(memory, 1) == static_cast<int32_t>(gridDim.x) - 1;
  __syncthreads();
  if (!is_last) return;
  if (fault != LastBlock::no_fence_behind) __threadfence();
  int32_t sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += values[b * kThreads + neighbour(1)];
  memory[1 + threadIdx.x] = sum;
}

// The same where one thread fences for its block, as CUDA's fences add up along barriers.
__global__ void last_block_of_one_thread_kernel(int32_t* memory, bool mended) {
  __shared__ bool is_last;
  wait_for_earlier_launches();
  int32_t* values = memory + 1 + kThreads;
  values[blockIdx.x * kThreads + threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    if (mended) __threadfence();
    is_last = atomicAdd(memory, 1) == static_cast<int32_t>(gridDim.x) - 1;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  int32_t sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += values[b * kThreads + neighbour(1)];
  memory[1 + threadIdx.x] = sum;
}

// ---- Launches

enum Order { kAllowThenWait, kWaitThenAllow, kWaitOnly, kAllowOnly };

// Writes in this order, behind the wait if there is one.
__global__ void producer_kernel(int32_t* memory, Order order, bool fence) {
  if (order == kAllowThenWait || order == kAllowOnly) allow_next_launch();
  if (order != kAllowOnly) wait_for_earlier_launches();
  if (order == kWaitThenAllow) allow_next_launch();
  if (memory) memory[threadIdx.x] = 1;
  if (fence) __threadfence();
}

enum Before { kNothing, kRead, kWrite };

__global__ void consumer_kernel(int32_t* memory, Before before) {
  allow_next_launch();
  int32_t value = before == kRead ? memory[threadIdx.x] : 0;
  if (before == kWrite) memory[kThreads + threadIdx.x] = 1;
  wait_for_earlier_launches();
  if (before != kRead) value = memory[threadIdx.x];
  memory[2 * kThreads + threadIdx.x] = value + 1;
}

// ---- The faults by name

struct Fault {
  const Launch& launch;
  int32_t* memory;
  bool mended;

  void blocks(void (*kernel)(int32_t*, bool), unsigned count, size_t shared_bytes = 0) const {
    launch(kernel, dim3(count), kThreads, shared_bytes, memory, mended);
  }
  void produce(Order order, bool fence = false) const {
    launch(producer_kernel, dim3(1), kThreads, 0, memory, order, fence);
  }
  // Writes nothing.
  void pass(Order order) const {
    launch(producer_kernel, dim3(1), kThreads, 0, static_cast<int32_t*>(nullptr), order, false);
  }
  void consume(Before before) const { launch(consumer_kernel, dim3(1), kThreads, 0, memory, before); }
};

constexpr struct {
  std::string_view name;
  void (*run)(const Fault&);
} kFaults[] = {
    {"missing barrier", [](const Fault& f) { f.blocks(missing_barrier_kernel, 1); }},
    {"missing second barrier", [](const Fault& f) { f.blocks(missing_second_barrier_kernel, 1); }},
    {"missing barrier of global memory", [](const Fault& f) { f.blocks(missing_barrier_of_global_memory_kernel, 1); }},
    {"missing warp barrier", [](const Fault& f) { f.blocks(missing_warp_barrier_kernel, 1); }},
    {"warp barrier for block", [](const Fault& f) { f.blocks(warp_barrier_for_block_kernel, 1); }},
    {"same value", [](const Fault& f) { f.blocks(same_value_kernel, 1); }},
    {"same byte", [](const Fault& f) { f.blocks(same_byte_kernel, 1); }},
    {"atomic and write", [](const Fault& f) { f.blocks(atomic_and_write_kernel, 1); }},
    {"missing barrier of copies", [](const Fault& f) { f.blocks(missing_barrier_of_copies_kernel, 1); }},
    {"copies of a later group", [](const Fault& f) { f.blocks(later_group_of_copies_kernel, 1); }},
    {"unwritten shared", [](const Fault& f) { f.blocks(unwritten_shared_kernel, 2); }},
    {"unwritten dynamic shared",
     [](const Fault& f) { f.blocks(unwritten_dynamic_shared_kernel, 2, kThreads * sizeof(int32_t)); }},
    {"overlapping blocks", [](const Fault& f) { f.blocks(overlapping_blocks_kernel, 2); }},
    {"block reads another", [](const Fault& f) { f.blocks(block_reads_another_kernel, 2); }},
    {"last block: no fence before", [](const Fault& f) { f.blocks(last_block_kernel<LastBlock::no_fence_before>, 3); }},
    {"last block: one fence before",
     [](const Fault& f) { f.blocks(last_block_kernel<LastBlock::one_fence_before>, 3); }},
    {"last block: no fence behind", [](const Fault& f) { f.blocks(last_block_kernel<LastBlock::no_fence_behind>, 3); }},
    {"last block: no barrier before",
     [](const Fault& f) { f.blocks(last_block_kernel<LastBlock::no_barrier_before>, 3); }},
    {"last block: no fence of one thread", [](const Fault& f) { f.blocks(last_block_of_one_thread_kernel, 3); }},
    {"read before wait",
     [](const Fault& f) {
       f.produce(kAllowThenWait);
       f.consume(f.mended ? kNothing : kRead);
     }},
    // Reads the results of torch or of an earlier operator.
    {"read before wait of the first launch", [](const Fault& f) { f.consume(f.mended ? kNothing : kRead); }},
    {"first launch that lets the next begin before it waits",
     [](const Fault& f) {
       f.pass(f.mended ? kWaitThenAllow : kAllowThenWait);
       f.consume(kRead);
     }},
    {"write before wait",
     [](const Fault& f) {
       f.pass(kAllowThenWait);
       f.consume(f.mended ? kNothing : kWrite);
     }},
    // Weights are packed; of two kernels behind it, the second one reads them early.
    {"weights of a launch that lets the next begin early",
     [](const Fault& f) {
       f.produce(f.mended ? kWaitOnly : kAllowThenWait, true);
       f.pass(kAllowThenWait);
       f.consume(kRead);
     }},
    {"weights without a fence",
     [](const Fault& f) {
       f.produce(kWaitOnly, f.mended);
       f.consume(kRead);
     }},
    {"launch between that does not wait",
     [](const Fault& f) {
       f.produce(kAllowThenWait);
       f.pass(f.mended ? kAllowThenWait : kAllowOnly);
       f.consume(kNothing);
     }},
    {"launch between that lets the next begin before it waits",
     [](const Fault& f) {
       f.produce(kAllowThenWait);
       f.pass(f.mended ? kWaitThenAllow : kAllowThenWait);
       f.consume(kRead);
     }},
};

void fault(const Tensor& memory, std::string name, bool mended) {
  check_tensor("fault", "memory", memory, ScalarType::Int, {1024});
  for (const auto& [known, run] : kFaults) {
    if (known == name) return run({Launch("fault", memory), static_cast<int32_t*>(memory.mutable_data_ptr()), mended});
  }
  STD_TORCH_CHECK(false, "fault: there is none of the name ", name);
}

}  // namespace

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY(higgs_native_emulation, m) { m.def("fault(Tensor(a!) memory, str name, bool mended) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(higgs_native_emulation, HIGGS_NATIVE_CUDA_KEY, m) {
  m.impl("fault", TORCH_BOX(&higgs_native::cuda::fault));
}
