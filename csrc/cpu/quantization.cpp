// Rounds a weight matrix to integers and scales: 8 bits with a scale for each row, or 4 bits with a scale for each group of
// kQuantGroup columns of a row. A scale is the one that loses nothing of the largest value, or, of some smaller ones too,
// the one with the least squared error: clipping few large values leaves finer steps for the others.
// Bytes moved: the matrix and its integers, once.
#include "cpu/quantization_kernels.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "common/checks.h"
#include "cpu/linear.h"

namespace higgs_native::cpu {

namespace {

constexpr int kClips = 10;           // clipping thresholds that are tried,
constexpr float kLeastClip = 0.55f;  // from the largest magnitude down to this share of it

// What a scale becomes when it is stored: as float16 no larger than its largest number, and 0 where its inverse overflows.
float stored(float scale, bool half) {
  if (half) scale = static_cast<float>(torch::headeronly::Half(std::clamp(scale, -65504.f, 65504.f)));
  return std::isfinite(1 / scale) ? scale : 0;
}

// The scale of n values x, never 0; NaN where one is not finite.
float choose_scale(const float* x, int64_t n, int64_t bits, bool clip) {
  const QuantizationKernels& kernels = quantization_kernels();
  const int32_t highest = (1 << (bits - 1)) - 1, lowest = bits == 4 ? -highest - 1 : -highest;
  const float extreme = kernels.extreme(x, n);
  if (extreme == 0) return 1;
  if (std::isnan(extreme)) return extreme;
  // With 4 bits the range has one step more below zero: the largest value goes there, whatever its sign.
  const float whole =
      bits == 4 ? extreme / static_cast<float>(lowest) : std::fabs(extreme) / static_cast<float>(highest);
  // Where a scale would have to be smaller than the smallest, all values become zero.
  float best = stored(whole, bits == 4);
  if (best == 0) return 1;
  if (!clip) return best;
  double least = kernels.error(x, n, best, lowest, highest);
  for (int i = 1; i < kClips; ++i) {
    const float share = 1 - (1 - kLeastClip) * static_cast<float>(i) / (kClips - 1);
    for (const float sign : {1.f, -1.f}) {
      if (bits == 8 && sign < 0) continue;
      const float scale = stored(whole * share * sign, bits == 4);
      if (scale == 0) continue;
      const double error = kernels.error(x, n, scale, lowest, highest);
      if (error < least) {
        least = error;
        best = scale;
      }
    }
  }
  return best;
}

void quantize_linear_cpu(const Tensor& integers, const Tensor& scales, const Tensor& weight, int64_t bits, bool clip) {
  const char* op = "quantize_linear";
  STD_TORCH_CHECK(bits == 8 || bits == 4, op, ": bits must be 8 or 4, got ", bits);
  check_weight(op, "weight", weight, {kAnySize, kAnySize});
  const int64_t n = weight.size(0), k = weight.size(1);
  check_tensor(op, "integers", integers, ScalarType::Char, {n, k});
  const int64_t size = bits == 8 ? std::max<int64_t>(k, 1) : kQuantGroup, groups = (k + size - 1) / size;
  if (bits == 8) check_tensor(op, "scales", scales, ScalarType::Float, {n});
  else check_tensor(op, "scales", scales, ScalarType::Half, {n, groups});
  const int32_t highest = (1 << (bits - 1)) - 1, lowest = bits == 4 ? -highest - 1 : -highest;
  int8_t* q = static_cast<int8_t*>(integers.mutable_data_ptr());
  void* to = scales.mutable_data_ptr();
  std::atomic<int64_t> faulty = -1;
  with_weight_type(weight, [&](auto* from) {
    for_ranges(n, (clip ? kClips * 8 : 8) * k, [&](int64_t begin, int64_t end) {
      struct Row;
      float* values = scratch<Row>(k);
      for (int64_t row = begin; row < end; ++row) {
        if constexpr (sizeof(*from) == 2) quantization_kernels().widen_bf16(values, from + row * k, k);
        else std::copy_n(from + row * k, k, values);
        for (int64_t g = 0; g < groups; ++g) {
          const float* x = values + g * size;
          const int64_t count = std::min(size, k - g * size);
          float scale = choose_scale(x, count, bits, clip);
          if (std::isnan(scale)) {
            faulty = row;
            scale = 1;
          }
          quantization_kernels().round(q + row * k + g * size, x, count, scale, lowest, highest);
          if (bits == 8) static_cast<float*>(to)[row] = scale;
          else static_cast<torch::headeronly::Half*>(to)[row * groups + g] = torch::headeronly::Half(scale);
        }
      }
    });
  });
  STD_TORCH_CHECK(faulty < 0, op, ": weight[", faulty.load(), "] holds values that are not finite");
}

}  // namespace

}  // namespace higgs_native::cpu

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) {
  m.impl("quantize_linear", TORCH_BOX(&higgs_native::cpu::quantize_linear_cpu));
}
