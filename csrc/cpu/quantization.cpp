// Rounds a weight matrix to integers and scales: 8 bits with a scale per row, or 4 bits with a scale per group of
// kQuantGroup columns of a row. Without clipping, a scale fits the largest value. With clipping, it is the one of some
// smaller scales that has the least squared error: few clipped values buy finer steps for the others.
// Bytes moved: the matrix and its integers, once.
#include "args/quantization.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "cpu/linear.h"
#include "cpu/quantization_kernels.h"

namespace higgs_native::cpu {

namespace {

void widen(float* out, const float* x, int64_t n) { std::copy_n(x, n, out); }
void widen(float* out, const bfloat16* x, int64_t n) { quantization_kernels().widen_bf16(out, x, n); }
void widen(float* out, const float16* x, int64_t n) { quantization_kernels().widen_f16(out, x, n); }

// The scale of n values x, never 0; NaN if one is not finite.
float choose_scale(const float* x, int64_t n, const Integers& range, bool clip) {
  const QuantizationKernels& kernels = quantization_kernels();
  const float extreme = kernels.extreme(x, n);
  if (extreme == 0) return 1;
  if (std::isnan(extreme)) return extreme;
  const float unclipped = range.unclipped_scale(extreme);
  // If the scale would be too small to store, all values become zero.
  const float widest = range.stored(unclipped);
  if (widest == 0) return 1;
  if (!clip) return widest;
  // All errors first: which of them is the least can't be predicted, and a wrong prediction holds up the next one.
  float scales[2 * kClips] = {widest};
  double errors[2 * kClips];
  int count = 1;
  for (int i = 1; i < kClips; ++i) {
    for (const float sign : {1.f, -1.f}) {
      if (range.bits == 8 && sign < 0) continue;
      const float scale = range.clipped_scale(unclipped, i, sign);
      if (scale != 0) scales[count++] = scale;
    }
  }
  for (int i = 0; i < count; ++i) errors[i] = kernels.error(x, n, scales[i], range.lowest(), range.highest());
  return scales[std::min_element(errors, errors + count) - errors];
}

void quantize_linear_cpu(const Tensor& integers, const Tensor& scales, const Tensor& weight, int64_t bits, bool clip) {
  const QuantizeLinear args = check_quantize_linear(integers, scales, weight, bits, clip);
  const int64_t k = args.k;
  std::atomic<int64_t> bad_row = -1;
  with_weight_type(weight, [&](auto* from) {
    for_ranges(args.n, (clip ? kClips * 8 : 8) * k, [&](int64_t begin, int64_t end) {
      struct Row;
      float* values = scratch<Row>(k);
      for (int64_t row = begin; row < end; ++row) {
        widen(values, from + row * k, k);
        for (int64_t g = 0; g < args.groups; ++g) {
          const int64_t first = g * args.group_size, count = std::min(args.group_size, k - first);
          float scale = choose_scale(values + first, count, args.range, clip);
          if (std::isnan(scale)) {
            bad_row = row;
            scale = 1;
          }
          quantization_kernels().round(
              args.integers + row * k + first, values + first, count, scale, args.range.lowest(), args.range.highest());
          if (bits == 8) static_cast<float*>(args.scales)[row] = scale;
          else static_cast<torch::headeronly::Half*>(args.scales)[row * args.groups + g] = scale;
        }
      }
    });
  });
  HIGGS_CHECK(bad_row < 0, "quantize_linear: weight[", bad_row.load(), "] holds values that are not finite");
}

}  // namespace

}  // namespace higgs_native::cpu

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) {
  m.impl("quantize_linear", TORCH_BOX(&higgs_native::cpu::quantize_linear_cpu));
}
