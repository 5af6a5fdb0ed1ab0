// Whether products of warpgroups give the bits of those of warps. Many rows take the first, a few the second, and a
// row must not depend on its batch. NVIDIA documents neither order nor rounding of the sums in a tensor core, so a GPU
// is tried before it is used.
#pragma once

#include "cuda/warpgroup.h"

namespace higgs_native::cuda {

namespace {

constexpr int kTrialSteps = 8, kTrialProducts = 2;  // of a step, which are begun together

template <int kColumns>
inline constexpr size_t kTrialSharedBytes = kTrialProducts * 2 * kColumns * 4 * sizeof(uint32_t);

// The sums of one type: kernels use products with 64, 128 and 192 columns.
constexpr int kAllTrialSums = kWarpgroup * (64 + 128 + 192) / 2;

// Two numbers of 16 bits, from 2^-27 to 2^8: float16 has zeros and subnormal numbers there.
template <typename T>
__device__ __forceinline__ uint32_t trial_word(uint32_t seed) {
  float pair[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    seed = (seed ^ seed >> 15) * 0x2c1b3c6du + 0x297a2d39u;
    seed ^= seed >> 13;
    pair[i] = __uint_as_float((seed & 0x807fffffu) | (100 + (seed >> 24) % 35) << 23);
  }
  return pack<T>(pair[0], pair[1]);
}

// A warpgroup multiplies random numbers in both ways, and adds the number of sums that are equal to `equal`.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kWarpgroup) compare_products_kernel(int32_t* equal) {
  wait_for_earlier_launches();
  // [product, half of the depth, columns, words]
  auto* b = reinterpret_cast<uint32_t (*)[2][kColumns][4]>(dynamic_shared());
  float sums[kColumns / 2], expected[kColumns / 8][4];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) sums[i] = expected[i / 4][i % 4] = 0;
  const uint32_t thread = threadIdx.x, g = thread % kWarp / 4, t = thread % 4;
  for (uint32_t step = 0; step < kTrialSteps; ++step) {
    for (uint32_t i = thread; i < kTrialProducts * 2 * kColumns * 4; i += kWarpgroup) {
      (&b[0][0][0][0])[i] = trial_word<T>(step << 16 | i);
    }
    show_to_products();
    __syncthreads();
    uint32_t a[kTrialProducts][4];
#pragma unroll
    for (uint32_t i = 0; i < kTrialProducts * 4; ++i) {
      a[i / 4][i % 4] = trial_word<T>((step + kTrialSteps) << 16 | i << 8 | thread);
    }
    begin_products(sums, a);
#pragma unroll
    for (uint32_t i = 0; i < kTrialProducts; ++i) {
      begin_product<T, kColumns>(sums, a[i], SharedColumns(b[i], kColumns * 16, 8 * 16), step + i > 0);
    }
    end_group_of_products();
#pragma unroll
    for (uint32_t tile = 0; tile < kColumns / 8; ++tile) {
#pragma unroll
      for (uint32_t i = 0; i < kTrialProducts; ++i) {
        multiply_pairs<T>(expected[tile], a[i], {b[i][0][8 * tile + g][t], b[i][1][8 * tile + g][t]});
      }
    }
    wait_for_products(sums);
    hold(a);
    __syncthreads();  // before the next step writes b
  }
  int32_t count = 0;
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    count += __float_as_uint(sums[i]) == __float_as_uint(expected[i / 4][i % 4]);
  }
  atomicAdd(equal, count);
}

}  // namespace

}  // namespace higgs_native::cuda
