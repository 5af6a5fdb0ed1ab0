// out = x @ weight.T + residual, and out = rms_norm(x) @ weight.T. Threads take runs of the weight's rows; the inner
// kernels stand in linear_kernels.cpp. Bytes moved: the weight, once for up to 96 rows.
#include "cpu/linear.h"

#include <torch/csrc/stable/library.h>

#include <optional>

#include "common/checks.h"

namespace higgs_native::cpu {

namespace {

constexpr int64_t kPiece = 16;  // weight rows a thread takes at a time

template <typename T>
void product(float* out, const float* x, const T* weight, int64_t rows, int64_t n, int64_t k, const float* residual) {
  for_ranges((n + kPiece - 1) / kPiece, kPiece * k * rows, [&](int64_t begin, int64_t end) {
    const int64_t n0 = begin * kPiece;
    const int64_t n1 = end * kPiece < n ? end * kPiece : n;
    linear_kernels().typed<T>().product(
        {out + n0, n, x, weight + n0 * k, rows, n1 - n0, k, residual ? residual + n0 : nullptr});
  });
}

void linear_cpu(const Tensor& out, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& residual) {
  check_tensor("linear", "x", x, ScalarType::Float, {kAnySize, kAnySize});
  const int64_t rows = x.size(0), k = x.size(1);
  check_weight("linear", "weight", weight, {kAnySize, k});
  const int64_t n = weight.size(0);
  check_tensor("linear", "out", out, ScalarType::Float, {rows, n});
  if (residual) check_tensor("linear", "residual", *residual, ScalarType::Float, {rows, n});
  const float* added = residual ? residual->const_data_ptr<float>() : nullptr;
  if (rows == 0) return;
  with_weight_type(weight, [&](auto* w) {
    product(out.mutable_data_ptr<float>(), x.const_data_ptr<float>(), w, rows, n, k, added);
  });
}

void rms_norm_linear_cpu(
    const Tensor& out, const Tensor& x, const Tensor& norm_weight, double eps, const Tensor& weight) {
  check_tensor("rms_norm_linear", "x", x, ScalarType::Float, {kAnySize, kAnySize});
  const int64_t rows = x.size(0), k = x.size(1);
  check_weight("rms_norm_linear", "norm_weight", norm_weight, {k});
  check_weight("rms_norm_linear", "weight", weight, {kAnySize, k});
  const int64_t n = weight.size(0);
  check_tensor("rms_norm_linear", "out", out, ScalarType::Float, {rows, n});
  if (rows == 0) return;
  struct Normalised;
  float* normalised = scratch<Normalised>(rows * k);
  rms_norm_rows(normalised, x.const_data_ptr<float>(), norm_weight, 0, rows, k, eps);
  with_weight_type(
      weight, [&](auto* w) { product(out.mutable_data_ptr<float>(), normalised, w, rows, n, k, nullptr); });
}

}  // namespace

void rms_norm_rows(
    float* out, const float* x, const Tensor& norm_weight, int64_t begin, int64_t end, int64_t k, double eps) {
  with_weight_type(norm_weight, [&](auto* w) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(w)>>;
    for (int64_t row = begin; row < end; ++row) {
      linear_kernels().typed<T>().rms_norm(out + row * k, x + row * k, w, k, static_cast<float>(eps));
    }
  });
}

}  // namespace higgs_native::cpu

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) {
  m.impl("linear", TORCH_BOX(&higgs_native::cpu::linear_cpu));
  m.impl("rms_norm_linear", TORCH_BOX(&higgs_native::cpu::rms_norm_linear_cpu));
}
