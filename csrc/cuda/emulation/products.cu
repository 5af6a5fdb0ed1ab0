// Products of warpgroups on the emulation, for tests: the trial that a GPU makes of them, and a fault in their use.
#include <torch/csrc/stable/library.h>

#include "cuda/launch.h"
#include "cuda/warpgroup_trial.h"

namespace higgs_native::cuda {

namespace {

// Adds the sums in which products of warpgroups and of warps differ to `differences`, [1].
void compare_products(const Tensor& differences) {
  check_tensor("compare_products", "differences", differences, ScalarType::Int, {1});
  const Launch launch("compare_products", differences);
  auto* count = differences.mutable_data_ptr<int32_t>();
  launch(compare_products_kernel<bfloat16>, dim3(1), kWarpgroup, kTrialSharedBytes, count);
  launch(compare_products_kernel<float16>, dim3(1), kWarpgroup, kTrialSharedBytes, count);
}

// Multiplies ones by ones, and then overwrites what a product reads; before that it is waited for, or not.
__global__ void overwrite_columns_kernel(float* sums_of_threads, bool waits) {
  auto* b = reinterpret_cast<uint32_t*>(dynamic_shared());
  constexpr int kWords = kTrialColumns * kTrialDepth / 2;
  wait_for_earlier_launches();
  const uint32_t ones = pack<bfloat16>(1, 1);
  for (int i = static_cast<int>(threadIdx.x); i < kWords; i += kWarpgroup) b[i] = ones;
  show_to_products();
  __syncthreads();
  float sums[kTrialColumns / 2] = {};
  begin_products(sums);
  begin_product<bfloat16, kTrialColumns>(
      sums, {ones, ones, ones, ones}, SharedColumns(b, kTrialColumns * 16, 8 * 16), true);
  end_group_of_products();
  if (waits) wait_for_products(sums);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kWords; i += kWarpgroup) b[i] = 0;
  wait_for_products(sums);
  sums_of_threads[threadIdx.x] = sums[0];
}

void overwrite_columns(const Tensor& sums, bool waits) {
  check_tensor("overwrite_columns", "sums", sums, ScalarType::Float, {kWarpgroup});
  const Launch launch("overwrite_columns", sums);
  launch(
      overwrite_columns_kernel, dim3(1), kWarpgroup, kTrialSharedBytes, static_cast<float*>(sums.mutable_data_ptr()),
      waits);
}

}  // namespace

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(higgs_native_emulation, m) {
  m.def("compare_products(Tensor(a!) differences) -> ()");
  m.def("overwrite_columns(Tensor(a!) sums, bool waits) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(higgs_native_emulation, HIGGS_NATIVE_CUDA_KEY, m) {
  m.impl("compare_products", TORCH_BOX(&higgs_native::cuda::compare_products));
  m.impl("overwrite_columns", TORCH_BOX(&higgs_native::cuda::overwrite_columns));
}
