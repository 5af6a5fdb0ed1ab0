// Builds and reverts the delay pattern.
//
//   build:  out[k, n] = [BOS, codes[k], EOS][n - k], BOS before the first and EOS after the last
//   revert: out[k, n] = delayed[k, n + k]
//
// Layout: int32, row-major, a row per codebook.
// Threads: x is the column of a row, so that neighboring threads read and write neighboring words; y is the codebook.
// Bytes: each code is read once and written once, 8 bytes per code.
#include "args/delay_pattern.h"

#include <torch/csrc/stable/library.h>

#include "cuda/launch.h"

namespace higgs_native::cuda {

namespace {

constexpr int kThreads = 256;

dim3 grid(int64_t num_columns, int64_t num_codebooks) {
  return dim3(static_cast<unsigned>((num_columns + kThreads - 1) / kThreads), static_cast<unsigned>(num_codebooks));
}

__global__ void __launch_bounds__(kThreads) delay_pattern_build_kernel(DelayPatternBuild args) {
  wait_for_earlier_launches();
  int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, k = blockIdx.y;
  if (column < args.num_columns) args.out[k * args.num_columns + column] = args.code(k, column);
}

__global__ void __launch_bounds__(kThreads) delay_pattern_revert_kernel(DelayPatternRevert args) {
  wait_for_earlier_launches();
  int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, k = blockIdx.y;
  if (column < args.num_out_columns()) args.out[k * args.num_out_columns() + column] = args.code(k, column);
}

void delay_pattern_build_cuda(const Tensor& out, const Tensor& codes, int64_t bos_id, int64_t eos_id) {
  const DelayPatternBuild args = check_delay_pattern_build(out, codes, bos_id, eos_id);
  if (out.numel() == 0) return;
  Launch launch("delay_pattern_build", out);
  launch(delay_pattern_build_kernel, grid(args.num_columns, args.num_codebooks), kThreads, 0, args);
}

void delay_pattern_revert_cuda(const Tensor& out, const Tensor& delayed) {
  const DelayPatternRevert args = check_delay_pattern_revert(out, delayed);
  if (out.numel() == 0) return;
  Launch launch("delay_pattern_revert", out);
  launch(delay_pattern_revert_kernel, grid(args.num_out_columns(), args.num_codebooks), kThreads, 0, args);
}

}  // namespace

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY_IMPL(higgs_native, HIGGS_NATIVE_CUDA_KEY, m) {
  m.impl("delay_pattern_build", TORCH_BOX(&higgs_native::cuda::delay_pattern_build_cuda));
  m.impl("delay_pattern_revert", TORCH_BOX(&higgs_native::cuda::delay_pattern_revert_cuda));
}
