// Products of warpgroups on the emulation, for tests: the trial that a GPU makes of them, and faults in their use.
#include <torch/csrc/stable/library.h>

#include "cuda/launch.h"
#include "cuda/warpgroup_trial.h"

namespace higgs_native::cuda {

namespace {

// Adds the number of sums in which products of warpgroups and of warps are equal to `equal`, [1]; returns how many
// there are.
int64_t compare_products(const Tensor& equal) {
  check_tensor("compare_products", "equal", equal, ScalarType::Int, {1});
  const Launch launch("compare_products", equal);
  auto* count = equal.mutable_data_ptr<int32_t>();
  const auto compare = [&]<int kColumns>(std::integral_constant<int, kColumns>) {
    launch(compare_products_kernel<bfloat16, kColumns>, dim3(1), kWarpgroup, kTrialSharedBytes<kColumns>, count);
    launch(compare_products_kernel<float16, kColumns>, dim3(1), kWarpgroup, kTrialSharedBytes<kColumns>, count);
  };
  compare(std::integral_constant<int, 64>());
  compare(std::integral_constant<int, 128>());
  compare(std::integral_constant<int, 192>());
  return 2 * kAllTrialSums;
}

// Faults in the use of products.
enum Fault { kNone, kOverwritten, kBegunTooEarly };

// Multiplies ones by ones, and then overwrites what a product reads.
__global__ void fault_kernel(float* sums_of_threads, int fault) {
  constexpr int kColumns = 128, kWords = 2 * kColumns * 4;
  auto* b = reinterpret_cast<uint32_t*>(dynamic_shared());
  wait_for_earlier_launches();
  const uint32_t ones = pack<bfloat16>(1, 1);
  for (int i = static_cast<int>(threadIdx.x); i < kWords; i += kWarpgroup) b[i] = ones;
  show_to_products();
  if (fault != kBegunTooEarly) __syncthreads();
  float sums[kColumns / 2] = {};
  uint32_t a[1][4] = {{ones, ones, ones, ones}};
  begin_products(sums, a);
  begin_product<bfloat16, kColumns>(sums, a[0], SharedColumns(b, kColumns * 16, 8 * 16), true);
  end_group_of_products();
  if (fault == kBegunTooEarly) __syncthreads();
  if (fault != kOverwritten) wait_for_products(sums);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kWords; i += kWarpgroup) b[i] = 0;
  wait_for_products(sums);
  sums_of_threads[threadIdx.x] = sums[0];
}

void fault_of_products(const Tensor& sums, int64_t fault) {
  check_tensor("fault_of_products", "sums", sums, ScalarType::Float, {kWarpgroup});
  const Launch launch("fault_of_products", sums);
  launch(
      fault_kernel, dim3(1), kWarpgroup, kTrialSharedBytes<128>, static_cast<float*>(sums.mutable_data_ptr()),
      static_cast<int>(fault));
}

}  // namespace

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(higgs_native_emulation, m) {
  m.def("compare_products(Tensor(a!) equal) -> int");
  m.def("fault_of_products(Tensor(a!) sums, int fault) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(higgs_native_emulation, HIGGS_NATIVE_CUDA_KEY, m) {
  m.impl("compare_products", TORCH_BOX(&higgs_native::cuda::compare_products));
  m.impl("fault_of_products", TORCH_BOX(&higgs_native::cuda::fault_of_products));
}
