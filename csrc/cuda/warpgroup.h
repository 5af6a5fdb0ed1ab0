// Products of a warpgroup, which is four warps whose first one's number is a multiple of four: sums += a x b, for 64
// rows of a in registers and columns of b in shared memory. GPUs of sm_90a have them. They multiply twice as fast as
// products of a warp (cuda/device.h), and go on while the warps do other things. The emulation on the CPU defines the
// same functions in emulation/warpgroup.h.
//
// Fragments (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"): warp i of the warpgroup has 16 rows of a,
// from 16 i on, and their sums, as in a product of a warp for each 8 columns: sums 4 j ... 4 j + 3 are those from column
// 8 j on.
#pragma once

#include "cuda/device.h"

#if defined(HIGGS_NATIVE_EMULATE_CUDA) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HIGGS_NATIVE_WARPGROUPS  // kernels of warpgroups are empty without it
#endif

namespace higgs_native::cuda {

constexpr int kWarpgroup = 4 * kWarp;  // threads

// b in shared memory, in pieces of 8 columns and 16 bytes of k; those 16 bytes of a piece's columns follow each other.
class SharedColumns {
 public:
  // `at`: the first piece, aligned to 16 bytes. `to_next_k`, `to_next_columns`: bytes from a piece to the next one.
  __device__ __forceinline__ SharedColumns(const void* at, uint32_t to_next_k, uint32_t to_next_columns);

  // The same columns `bytes` further, a multiple of 16.
  __device__ __forceinline__ SharedColumns operator+(uint32_t bytes) const {
    SharedColumns moved = *this;
    moved.descriptor += bytes >> 4;
    return moved;
  }

  // The matrix descriptor, without swizzling (PTX ISA, "Matrix descriptor format").
  uint64_t descriptor;
};

}  // namespace higgs_native::cuda

#if defined(HIGGS_NATIVE_EMULATE_CUDA)
#include "cuda/emulation/warpgroup.h"
#else

namespace higgs_native::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// Makes visible to products what this thread wrote or copied to shared memory. A barrier must follow.
__device__ __forceinline__ void show_to_products() {
#if defined(HIGGS_NATIVE_WARPGROUPS)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Comes before products whose registers were written since the last ones.
template <int kCount, int kProducts>
__device__ __forceinline__ void begin_products(float (&sums)[kCount], uint32_t (&a)[kProducts][4]) {
#if defined(HIGGS_NATIVE_WARPGROUPS)
  // The compiler computes them here, not between the fence and the products.
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
#pragma unroll
  for (int i = 0; i < 4 * kProducts; ++i) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Makes a group of the products since the last one.
__device__ __forceinline__ void end_group_of_products() {
#if defined(HIGGS_NATIVE_WARPGROUPS)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until all groups but the last `kLeft` have read a and b.
template <int kLeft>
__device__ __forceinline__ void wait_for_groups_of_products() {
#if defined(HIGGS_NATIVE_WARPGROUPS)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
#endif
}

// Waits for all products, so that their sums can be read.
template <int kCount>
__device__ __forceinline__ void wait_for_products(float (&sums)[kCount]) {
  wait_for_groups_of_products<0>();
#if defined(HIGGS_NATIVE_WARPGROUPS)
  // The compiler does not see that the wait writes them.
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
#endif
}

// Holds the registers of a until here, where their products have been waited for: the compiler does not know that
// products read them later than they begin.
template <int kProducts>
__device__ __forceinline__ void hold(const uint32_t (&a)[kProducts][4]) {
#pragma unroll
  for (int i = 0; i < kProducts; ++i) {
    asm volatile("" ::"r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]) : "memory");
  }
}

#define HIGGS_FOUR(kind, v, i) kind(v[i]), kind(v[i + 1]), kind(v[i + 2]), kind(v[i + 3])
#define HIGGS_SIXTEEN(kind, v, i) \
  HIGGS_FOUR(kind, v, i), HIGGS_FOUR(kind, v, i + 4), HIGGS_FOUR(kind, v, i + 8), HIGGS_FOUR(kind, v, i + 12)
#define HIGGS_NAMES_32                                                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
  "%23, %24, %25, %26, %27, %28, %29, %30, %31"
#define HIGGS_NAMES_64                                             \
  HIGGS_NAMES_32                                                   \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, " \
  "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define HIGGS_NAMES_96                                                                                          \
  HIGGS_NAMES_64                                                                                                \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, " \
  "%85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define HIGGS_PRODUCT_64(type)                                                                                   \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type \
               " {" HIGGS_NAMES_32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;}"                                  \
               : HIGGS_SIXTEEN("+f", sums, 0), HIGGS_SIXTEEN("+f", sums, 16)                                     \
               : HIGGS_FOUR("r", a, 0), "l"(b.descriptor), "r"(static_cast<int>(adds)))
#define HIGGS_PRODUCT_128(type)                                                                                   \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %69, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type \
               " {" HIGGS_NAMES_64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;}"                                   \
               : HIGGS_SIXTEEN("+f", sums, 0), HIGGS_SIXTEEN("+f", sums, 16), HIGGS_SIXTEEN("+f", sums, 32),      \
                 HIGGS_SIXTEEN("+f", sums, 48)                                                                    \
               : HIGGS_FOUR("r", a, 0), "l"(b.descriptor), "r"(static_cast<int>(adds)))
#define HIGGS_PRODUCT_192(type)                                                                                    \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %101, 0; wgmma.mma_async.sync.aligned.m64n192k16.f32." type "." type \
               " {" HIGGS_NAMES_96 "}, {%96, %97, %98, %99}, %100, p, 1, 1, 0;}"                                   \
               : HIGGS_SIXTEEN("+f", sums, 0), HIGGS_SIXTEEN("+f", sums, 16), HIGGS_SIXTEEN("+f", sums, 32),       \
                 HIGGS_SIXTEEN("+f", sums, 48), HIGGS_SIXTEEN("+f", sums, 64), HIGGS_SIXTEEN("+f", sums, 80)       \
               : HIGGS_FOUR("r", a, 0), "l"(b.descriptor), "r"(static_cast<int>(adds)))

// Begins a product of bfloat16 or float16, 16 deep, with kColumns columns. Without `adds` the sums are the product alone.
template <typename T, int kColumns>
__device__ __forceinline__ void begin_product(
    float (&sums)[kColumns / 2], const uint32_t (&a)[4], const SharedColumns& b, bool adds) {
  static_assert(kColumns == 64 || kColumns == 128 || kColumns == 192);
#if defined(HIGGS_NATIVE_WARPGROUPS)
  if constexpr (kColumns == 64) {
    if constexpr (std::is_same_v<T, float16>) HIGGS_PRODUCT_64("f16");
    else HIGGS_PRODUCT_64("bf16");
  } else if constexpr (kColumns == 128) {
    if constexpr (std::is_same_v<T, float16>) HIGGS_PRODUCT_128("f16");
    else HIGGS_PRODUCT_128("bf16");
  } else {
    if constexpr (std::is_same_v<T, float16>) HIGGS_PRODUCT_192("f16");
    else HIGGS_PRODUCT_192("bf16");
  }
#endif
}

#undef HIGGS_PRODUCT_192
#undef HIGGS_PRODUCT_128
#undef HIGGS_PRODUCT_64
#undef HIGGS_NAMES_96
#undef HIGGS_NAMES_64
#undef HIGGS_NAMES_32
#undef HIGGS_SIXTEEN
#undef HIGGS_FOUR

}  // namespace higgs_native::cuda

#endif

namespace higgs_native::cuda {

__device__ __forceinline__ SharedColumns::SharedColumns(const void* at, uint32_t to_next_k, uint32_t to_next_columns)
    : descriptor(
          (shared_address(at) & 0x3ffff) >> 4 | static_cast<uint64_t>(to_next_k >> 4) << 16 |
          static_cast<uint64_t>(to_next_columns >> 4) << 32) {}

}  // namespace higgs_native::cuda
