// CUDA's kernel language on the CPU, so that every kernel is tested without a GPU. device.h includes this header in
// place of the CUDA runtime.
//
// A launch runs its blocks one by one. Each thread of a block is a coroutine that runs until it waits: for its warp in
// a collective, or for the block in __syncthreads. So the arithmetic, the indices and the barriers are those of the
// kernel. The order of the warps changes from launch to launch. Faults that need another order, or several blocks at a
// time, are found in the accesses to memory: a race is an error of the operator (races.h). A barrier that some threads
// never reach ends the program with a message.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "cuda/emulation/races.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
// Blocks run one at a time, so they can share the variables of a kernel. Its other variables are all on the stack.
#define __shared__ static
// A function in place of hardware: its accesses to memory are not the kernel's.
#define HIGGS_NATIVE_HARDWARE __attribute__((no_sanitize("thread"), noinline))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

using cudaStream_t = void*;

namespace higgs_native::emulation {

inline constexpr int kWarp = 32;

// The indices of the running thread, and the shape of the launch.
struct Registers {
  dim3 thread, block, block_dim, grid_dim;
  char* shared_memory;
};
extern Registers registers;

// Starts a call of an operator; returns its number, for its launches.
uint32_t begin_operator();
// Runs a launch of operator `op` in call `call`; throws std::runtime_error if its kernel has races.
void run(
    const char* op, uint32_t call, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);
// If launches are recorded, appends one to the file and returns true. A line holds the operator, the address of the kernel
// in the library, blocks along x, y and z, threads, bytes of dynamic shared memory, and bytes prefetched for later launches.
bool record_launch(
    const char* op, const void* kernel, dim3 grid, int threads, size_t shared_bytes, int64_t prefetched_bytes);
// Fails unless `from` and `bytes` are multiples of 16 and the memory can be read.
void prefetch(const void* from, size_t bytes);
void wait_for_block();
// Copies 4, 8 or 16 aligned bytes, zeros from null. They are visible once they are waited for, and NaN until then.
void copy_async(void* to, const void* from, int bytes);
void wait_for_copies();
void end_group_of_copies();
void wait_for_groups_of_copies(int left);
// A thread's part of a product of a warpgroup, which it computes once it waits for it.
struct Product {
  void (*compute)(const Product&);
  float* sums;
  uint32_t a[2][8];  // rows g and g + 8 of a, in words
  uint64_t descriptor;
  bool adds;
  const void* code;  // in the kernel
};
void begin_product(const Product& product);
void end_group_of_products();
void wait_for_groups_of_products(int left);
// Ends the program with a message.
[[noreturn]] void fail(const char* message);
// Waits for every thread of the warp that has not returned; returns the 64 bits that each gave, zero for those that
// returned.
const uint64_t* exchange(uint64_t value);
// The same for what a lane brings to a product of its warp.
struct Fragment {
  uint32_t words[12];
};
const Fragment* exchange(const Fragment& own);

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline unsigned lane() { return registers.thread.x % kWarp; }

}  // namespace higgs_native::emulation

#define threadIdx (higgs_native::emulation::registers.thread)
#define blockIdx (higgs_native::emulation::registers.block)
#define blockDim (higgs_native::emulation::registers.block_dim)
#define gridDim (higgs_native::emulation::registers.grid_dim)

inline void __syncthreads() { higgs_native::emulation::wait_for_block(); }
HIGGS_NATIVE_HARDWARE inline void __syncwarp() {
  using namespace higgs_native::emulation;
  const uint64_t* waited = exchange(races::has_waited());
  races::warp_barrier(std::any_of(waited, waited + kWarp, [](uint64_t one) { return one != 0; }));
}
inline void __threadfence() { higgs_native::emulation::races::fence(); }

template <typename T>
HIGGS_NATIVE_HARDWARE T __shfl_sync(unsigned, T value, int from) {
  using namespace higgs_native::emulation;
  return from_bits<T>(exchange(to_bits(value))[from % kWarp]);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int with) {
  return __shfl_sync(mask, value, static_cast<int>(higgs_native::emulation::lane()) ^ with);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  const unsigned lane = higgs_native::emulation::lane();
  return __shfl_sync(mask, value, static_cast<int>(lane < by ? lane : lane - by));
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  const unsigned lane = higgs_native::emulation::lane();
  return __shfl_sync(mask, value, static_cast<int>(lane + by < 32 ? lane + by : lane));
}

HIGGS_NATIVE_HARDWARE inline unsigned __ballot_sync(unsigned, bool vote) {
  const uint64_t* votes = higgs_native::emulation::exchange(vote);
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) ballot |= static_cast<unsigned>(votes[i] & 1) << i;
  return ballot;
}

inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }

HIGGS_NATIVE_HARDWARE inline unsigned __reduce_add_sync(unsigned, unsigned value) {
  const uint64_t* values = higgs_native::emulation::exchange(value);
  unsigned sum = 0;
  for (int i = 0; i < 32; ++i) sum += static_cast<unsigned>(values[i]);
  return sum;
}

HIGGS_NATIVE_HARDWARE inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  const uint64_t* values = higgs_native::emulation::exchange(value);
  return static_cast<unsigned>(*std::max_element(values, values + 32));
}

inline unsigned __reduce_min_sync(unsigned mask, unsigned value) { return ~__reduce_max_sync(mask, ~value); }

template <typename T, typename V>
HIGGS_NATIVE_HARDWARE T atomicAdd(T* to, V value) {
  using namespace higgs_native::emulation::races;
  access(to, sizeof(T), Access::atomic, __builtin_return_address(0));
  const T before = *to;
  *to = static_cast<T>(before + value);
  return before;
}

template <typename T>
HIGGS_NATIVE_HARDWARE T atomicMax(T* to, T value) {
  using namespace higgs_native::emulation::races;
  access(to, sizeof(T), Access::atomic, __builtin_return_address(0));
  const T before = *to;
  *to = std::max(before, value);
  return before;
}

template <typename T>
T __ldg(const T* p) {
  return *p;
}
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline float __uint_as_float(uint32_t bits) { return higgs_native::emulation::from_bits<float>(bits); }
inline uint32_t __float_as_uint(float x) { return static_cast<uint32_t>(higgs_native::emulation::to_bits(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
using std::max;
using std::min;
