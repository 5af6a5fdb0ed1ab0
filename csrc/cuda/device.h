// What kernels use of CUDA, for nvcc and for the emulation on the CPU: number formats, streaming loads, sums over a warp,
// tensor cores, and the order of dependent launches.
//
// Fragments of the tensor cores' m16n8 products (PTX ISA, "Matrix Fragments for mma.m16n8k16"): lane 4 * g + t of the warp
// holds of A the words of rows g and g + 8, of B those of column g, of the sums rows g and g + 8 in columns 2 t and 2 t + 1.
#pragma once

#if defined(HIGGS_NATIVE_EMULATE_CUDA)
#include "cuda/emulation/emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/numbers.h"

namespace higgs_native::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// ---- Numbers

__host__ __device__ __forceinline__ float bits_as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

__host__ __device__ __forceinline__ uint32_t float_as_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bfloat16 x) { return bits_as_float(static_cast<uint32_t>(x.bits) << 16); }

// To the nearest, ties to even; a NaN stays one.
__device__ __forceinline__ bfloat16 to_bfloat16(float x) {
  const uint32_t bits = float_as_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

__device__ __forceinline__ float to_float(float16 x) {
#if defined(HIGGS_NATIVE_EMULATE_CUDA)
  return static_cast<float>(torch::headeronly::Half(x.bits, torch::headeronly::Half::from_bits()));
#else
  return __half2float(__ushort_as_half(x.bits));
#endif
}

// To the nearest, ties to even; infinity beyond the largest number, 65504.
__device__ __forceinline__ float16 to_float16(float x) {
#if defined(HIGGS_NATIVE_EMULATE_CUDA)
  return {torch::headeronly::Half(x).x};
#else
  return {__half_as_ushort(__float2half_rn(x))};
#endif
}

template <typename T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) return x;
  else if constexpr (std::is_same_v<T, float16>) return to_float16(x);
  else return to_bfloat16(x);
}

// Two numbers of 16 bits in a word, the first in the lower half.
template <typename T>
__device__ __forceinline__ uint32_t pack(float first, float second) {
#if defined(HIGGS_NATIVE_EMULATE_CUDA)
  return from_float<T>(first).bits | static_cast<uint32_t>(from_float<T>(second).bits) << 16;
#else
  uint32_t word;
  if constexpr (std::is_same_v<T, float16>) {
    const __half2 pair = __floats2half2_rn(first, second);
    memcpy(&word, &pair, sizeof word);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    memcpy(&word, &pair, sizeof word);
  }
  return word;
#endif
}

// The first and the second of them.
template <typename T>
__device__ __forceinline__ float2 unpack(uint32_t word) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return make_float2(bits_as_float(word << 16), bits_as_float(word & 0xffff0000u));
  } else {
    return make_float2(
        to_float(float16{static_cast<uint16_t>(word)}), to_float(float16{static_cast<uint16_t>(word >> 16)}));
  }
}

// Two e4m3, the upper bytes of the halves of a word, as two bfloat16, exactly; what is in the lower bytes does not matter.
// The exponents' offsets are 7 and 127; scaling by the difference also widens what is too small for e4m3's.
__device__ __forceinline__ uint32_t widen_e4m3(uint32_t word) {
  const uint32_t bits = (word & 0x80008000u) | (word >> 4 & 0x07f007f0u);
#if defined(HIGGS_NATIVE_EMULATE_CUDA)
  return pack<bfloat16>(bits_as_float(bits << 16) * 0x1p120f, bits_as_float(bits & 0xffff0000u) * 0x1p120f);
#else
  __nv_bfloat162 pair;
  memcpy(&pair, &bits, sizeof pair);
  pair = __hmul2(pair, __float2bfloat162_rn(0x1p120f));
  uint32_t wide;
  memcpy(&wide, &pair, sizeof wide);
  return wide;
#endif
}

// ---- Memory

// 16 bytes that are read once: they do not push what is read again out of the first cache.
__device__ __forceinline__ uint4 load_streaming(const void* p) {
#if defined(HIGGS_NATIVE_EMULATE_CUDA)
  return *static_cast<const uint4*>(p);
#else
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
#endif
}

// The memory that a launch asks for.
__device__ __forceinline__ char* dynamic_shared() {
#if defined(HIGGS_NATIVE_EMULATE_CUDA)
  return emulation::registers.shared_memory;
#else
  extern __shared__ __align__(128) char higgs_native_dynamic_shared[];
  return higgs_native_dynamic_shared;
#endif
}

// Begins to copy a value to shared memory, or a zero where it is not wanted; `from` is not read then.
__device__ __forceinline__ void copy_async(float* to, const float* from, bool wanted) {
#if defined(HIGGS_NATIVE_EMULATE_CUDA)
  emulation::copy_async(to, wanted ? from : nullptr);
#else
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(from), "r"(wanted ? 4 : 0)
               : "memory");
#endif
}

// Behind it, what this thread has begun to copy is there for it; for the other threads behind a barrier too.
__device__ __forceinline__ void wait_for_copies() {
#if defined(HIGGS_NATIVE_EMULATE_CUDA)
  emulation::wait_for_copies();
#else
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// ---- Launches that overlap (programmatic dependent launch, sm_90 and above): a kernel may begin while those before it
// still run. It must wait before it reads what they wrote, and before it writes what they read. Every kernel waits in all its
// threads, so that everything launched earlier is complete behind the wait.
// Weights may be read before the wait, but not by the first launch of an operator: a launch just before, torch's or ours, may
// have written them. The first launch waits, and only then lets the next one begin. So whatever wrote weights before the
// operator is complete when its other launches begin, which needs no promise of the caller, nor a fence of whoever wrote.

__device__ __forceinline__ void wait_for_earlier_launches() {
#if defined(HIGGS_NATIVE_EMULATE_CUDA)
  emulation::races::wait_for_earlier_launches();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next launch begin as soon as its blocks find room.
__device__ __forceinline__ void allow_next_launch() {
#if defined(HIGGS_NATIVE_EMULATE_CUDA)
  emulation::races::allow_next_launch();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

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

// ---- Tensor cores: sums += a x b for a warp.

// bfloat16 or float16: a [16, 16], b [16, 8].
template <typename T>
__device__ __forceinline__ void multiply_pairs(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(HIGGS_NATIVE_EMULATE_CUDA)
  using namespace emulation;
  const int g = static_cast<int>(lane()) / 4, t = static_cast<int>(lane()) % 4;
  uint64_t words[3][kWarp];
  std::memcpy(words[0], exchange(a[0] | static_cast<uint64_t>(a[1]) << 32), sizeof words[0]);
  std::memcpy(words[1], exchange(a[2] | static_cast<uint64_t>(a[3]) << 32), sizeof words[1]);
  std::memcpy(words[2], exchange(b[0] | static_cast<uint64_t>(b[1]) << 32), sizeof words[2]);
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
    for (int k = 0; k < 16; k += 2) {
      const int half = k / 8, at = k % 8 / 2;
      const float2 from_a = unpack<T>(static_cast<uint32_t>(words[half][4 * (row % 8) + at] >> (row < 8 ? 0 : 32)));
      const float2 from_b = unpack<T>(static_cast<uint32_t>(words[2][4 * column + at] >> (32 * half)));
      sums[i] += from_a.x * from_b.x;
      sums[i] += from_a.y * from_b.y;
    }
  }
#else
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
#endif
}

// 8-bit integers: a [16, 32], signed or not, b [32, 8], signed.
template <bool kSigned>
__device__ __forceinline__ void multiply_bytes(int32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(HIGGS_NATIVE_EMULATE_CUDA)
  using namespace emulation;
  const int g = static_cast<int>(lane()) / 4, t = static_cast<int>(lane()) % 4;
  uint64_t words[3][kWarp];
  std::memcpy(words[0], exchange(a[0] | static_cast<uint64_t>(a[1]) << 32), sizeof words[0]);
  std::memcpy(words[1], exchange(a[2] | static_cast<uint64_t>(a[3]) << 32), sizeof words[1]);
  std::memcpy(words[2], exchange(b[0] | static_cast<uint64_t>(b[1]) << 32), sizeof words[2]);
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
    for (int k = 0; k < 32; ++k) {
      const int half = k / 16, at = k % 16 / 4, shift = 8 * (k % 4);
      const auto from_a = static_cast<uint32_t>(words[half][4 * (row % 8) + at] >> (row < 8 ? 0 : 32)) >> shift & 0xff;
      const auto from_b = static_cast<uint32_t>(words[2][4 * column + at] >> (32 * half)) >> shift & 0xff;
      const int weight = kSigned ? static_cast<int8_t>(from_a) : static_cast<int>(from_a);
      sums[i] += weight * static_cast<int8_t>(from_b);
    }
  }
#else
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
#endif
}

}  // namespace higgs_native::cuda
