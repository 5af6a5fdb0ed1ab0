// Whether products of warpgroups give the bits of those of warps. Prompts take the first, a few rows the second, and a
// row must not depend on its batch. NVIDIA documents neither order nor rounding of the sums in a tensor core, so a GPU
// is tried before it is used.
#pragma once

#include "cuda/warpgroup.h"

namespace higgs_native::cuda {

namespace {

constexpr int kTrialColumns = 128, kTrialSteps = 16, kTrialDepth = 16;

// Two numbers of 16 bits whose exponents differ by up to 15.
template <typename T>
__device__ __forceinline__ uint32_t trial_word(uint32_t seed) {
  float pair[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    seed = (seed ^ seed >> 15) * 0x2c1b3c6du + 0x297a2d39u;
    seed ^= seed >> 13;
    pair[i] = __uint_as_float((seed & 0x807fffffu) | (119 + (seed >> 24) % 16) << 23);
  }
  return pack<T>(pair[0], pair[1]);
}

// A warpgroup multiplies random numbers in both ways, and adds the sums that differ to `differences`.
template <typename T>
__global__ void __launch_bounds__(kWarpgroup) compare_products_kernel(int32_t* differences) {
  wait_for_earlier_launches();
  // [half of the depth, columns, words]
  auto* b = reinterpret_cast<uint32_t (*)[kTrialColumns][4]>(dynamic_shared());
  float sums[kTrialColumns / 2], expected[kTrialColumns / 8][4];
#pragma unroll
  for (int i = 0; i < kTrialColumns / 2; ++i) sums[i] = expected[i / 4][i % 4] = 0;
  const uint32_t thread = threadIdx.x, g = thread % kWarp / 4, t = thread % 4;
  for (uint32_t step = 0; step < kTrialSteps; ++step) {
    for (uint32_t i = thread; i < kTrialColumns * 8; i += kWarpgroup) {
      b[i / 4 / kTrialColumns][i / 4 % kTrialColumns][i % 4] = trial_word<T>(step << 16 | i);
    }
    show_to_products();
    __syncthreads();
    uint32_t a[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) a[i] = trial_word<T>((step + kTrialSteps) << 16 | i << 8 | thread);
    begin_products(sums);
    begin_product<T, kTrialColumns>(sums, a, SharedColumns(b, kTrialColumns * 16, 8 * 16), step > 0);
    end_group_of_products();
#pragma unroll
    for (uint32_t tile = 0; tile < kTrialColumns / 8; ++tile) {
      multiply_pairs<T>(expected[tile], a, {b[0][8 * tile + g][t], b[1][8 * tile + g][t]});
    }
    wait_for_products(sums);
    __syncthreads();  // before the next step writes b
  }
  int32_t count = 0;
#pragma unroll
  for (int i = 0; i < kTrialColumns / 2; ++i) {
    count += __float_as_uint(sums[i]) != __float_as_uint(expected[i / 4][i % 4]);
  }
  if (count > 0) atomicAdd(differences, count);
}

constexpr size_t kTrialSharedBytes = kTrialColumns * kTrialDepth * 2;

}  // namespace

}  // namespace higgs_native::cuda
