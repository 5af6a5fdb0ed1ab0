// What the families that multiply with weights share.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <type_traits>

#include "cpu/linear_kernels.h"
#include "cpu/parallel.h"

namespace higgs_native::cpu {

using torch::stable::Tensor;

// Calls f with the weight's data as `const float*` or `const uint16_t*` (bfloat16).
template <typename F>
void with_weight_type(const Tensor& weight, const F& f) {
  if (weight.scalar_type() == torch::headeronly::ScalarType::BFloat16) {
    f(static_cast<const uint16_t*>(weight.const_data_ptr()));
  } else {
    f(static_cast<const float*>(weight.const_data_ptr()));
  }
}

// out[row] = rms_norm(x[row]) for begin <= row < end; out and x are [rows, k].
void rms_norm_rows(
    float* out, const float* x, const Tensor& norm_weight, int64_t begin, int64_t end, int64_t k, double eps);

}  // namespace higgs_native::cpu
