// The parts of CUDA that kernels use: number formats, streaming loads, asynchronous copies, warp sums, tensor cores,
// and the order of dependent launches. The emulation on the CPU defines the same functions in emulation/device.h.
//
// Fragments of the tensor cores' m16n8 products (PTX ISA, "Matrix Fragments for mma.m16n8k16"): lane 4 * g + t of the
// warp holds the words of rows g and g + 8 of A, those of column g of B, and the sums of rows g and g + 8 in columns 2
// t and 2 t + 1.
#pragma once

#if defined(HIGGS_NATIVE_EMULATE_CUDA)
#include "cuda/emulation/device.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/numbers.h"

namespace higgs_native::cuda {

// ---- Numbers

__device__ __forceinline__ float to_float(float16 x) { return __half2float(__ushort_as_half(x.bits)); }

// Rounds to nearest even; infinity above 65504, the largest number.
__device__ __forceinline__ float16 to_float16(float x) { return {__half_as_ushort(__float2half_rn(x))}; }

// Two numbers of 16 bits in a word, the first in the lower half.
template <typename T>
__device__ __forceinline__ uint32_t pack(float first, float second) {
  uint32_t word;
  if constexpr (std::is_same_v<T, float16>) {
    const __half2 pair = __floats2half2_rn(first, second);
    memcpy(&word, &pair, sizeof word);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    memcpy(&word, &pair, sizeof word);
  }
  return word;
}

// The lower halves of two words, and the upper ones.
__device__ __forceinline__ uint32_t lower_halves(uint32_t first, uint32_t second) {
  return __byte_perm(first, second, 0x5410);
}

__device__ __forceinline__ uint32_t upper_halves(uint32_t first, uint32_t second) {
  return __byte_perm(first, second, 0x7632);
}

// The e4m3 in the upper bytes of both halves of a word as two bfloat16, exactly; the lower bytes are ignored. Scaling
// corrects the exponent's offset, 7 instead of 127, and normalizes subnormal numbers.
__device__ __forceinline__ uint32_t widen_e4m3(uint32_t word) {
  const uint32_t bits = (word & 0x80008000u) | (word >> 4 & 0x07f007f0u);
  __nv_bfloat162 pair;
  memcpy(&pair, &bits, sizeof pair);
  pair = __hmul2(pair, __float2bfloat162_rn(0x1p120f));
  uint32_t wide;
  memcpy(&wide, &pair, sizeof wide);
  return wide;
}

// ---- Memory

// 16 bytes that are read once: they are not kept in L1, where they would evict what is read again.
__device__ __forceinline__ uint4 load_streaming(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// Begins to load `bytes` from `from` on into L2; both must be multiples of 16. It is a hint without a result, so what
// other launches write there meanwhile does not matter. GPUs before sm_90 do nothing.
__device__ __forceinline__ void prefetch_l2(const void* from, uint32_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes));
#endif
}

// What other blocks of the launch wrote, which is in L2.
template <typename T>
__device__ __forceinline__ T load_l2(const T* p) {
  return __ldcg(p);
}

// Adds to a counter that blocks share, between fences: behind a barrier, whoever reads the sum sees what this block
// wrote before, and this block sees what those wrote that added before.
__device__ __forceinline__ int32_t fenced_add(int32_t* to, int32_t value) {
  int32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;" : "=r"(before) : "l"(to), "r"(value) : "memory");
  return before;
}

// The shared memory that a launch asks for.
__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ __align__(128) char higgs_native_dynamic_shared[];
  return higgs_native_dynamic_shared;
}

// Starts copying a value to shared memory; a zero, without reading `from`, unless it is wanted.
__device__ __forceinline__ void copy_async(float* to, const float* from, bool wanted) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(from), "r"(wanted ? 4 : 0)
               : "memory");
}

// The same for 8 and for 16 aligned bytes.
__device__ __forceinline__ void copy_async(uint2* to, const void* from, bool wanted) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 8, %2;" ::"r"(address), "l"(from), "r"(wanted ? 8 : 0)
               : "memory");
}

__device__ __forceinline__ void copy_async(uint4* to, const void* from, bool wanted) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(wanted ? 16 : 0)
               : "memory");
}

// Waits for this thread's async copies; other threads see them after __syncthreads().
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Makes a group of this thread's copies since the last one, which may be empty.
__device__ __forceinline__ void end_group_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups but the last `kLeft`.
template <int kLeft>
__device__ __forceinline__ void wait_for_groups_of_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// ---- Launches that overlap (programmatic dependent launch, sm_90 and above): a kernel may start while earlier ones
// run. It must wait before it reads what they wrote, and before it writes what they read. Every kernel waits in all its
// threads, so that all earlier launches are complete after the wait.
// Weights may be read before the wait, except by the first launch of an operator: a launch just before, torch's or
// ours, may have written them. The first launch waits, and only then lets the next one start. So whatever wrote weights
// before the operator is complete when its other launches start, without a promise of the caller or a fence. The same is
// true of what no launch of an operator writes: positions, slots and pages of its rows.

__device__ __forceinline__ void wait_for_earlier_launches() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next launch start as soon as its blocks find room.
__device__ __forceinline__ void allow_next_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// ---- Rounding to 8 bits

// x * factor rounded to the nearest integer, in the low byte, where its magnitude is at most 127. A conversion would take
// 16 lanes per cycle of a multiprocessor.
__device__ __forceinline__ uint32_t round_to_byte(float x, float factor) {
  return __float_as_uint(__fadd_rn(__fmul_rn(x, factor), 0x1.8p23f));
}

// A word of the low bytes of four.
__device__ __forceinline__ uint32_t pack_bytes(const uint32_t (&four)[4]) {
  return __byte_perm(__byte_perm(four[0], four[1], 0x0040), __byte_perm(four[2], four[3], 0x0040), 0x5410);
}

// Adds the four signed bytes of a word.
__device__ __forceinline__ void add_bytes(int32_t& sum, uint32_t word) {
  sum = __dp4a(static_cast<int32_t>(word), 0x01010101, sum);
}

// ---- Tensor cores: sums += a x b, for a warp

// bfloat16 or float16: a [16, 16], b [16, 8].
template <typename T>
__device__ __forceinline__ void multiply_pairs(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, float16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// 8-bit integers: a [16, 32], signed or not, b [32, 8], signed.
template <bool kSigned>
__device__ __forceinline__ void multiply_bytes(int32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kSigned) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

}  // namespace higgs_native::cuda

#endif

namespace higgs_native::cuda {

// ---- Warps

template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int with = kWarp / 2; with > 0; with /= 2) x += __shfl_xor_sync(kAllLanes, x, with);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int with = kWarp / 2; with > 0; with /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, with));
  return x;
}

}  // namespace higgs_native::cuda
