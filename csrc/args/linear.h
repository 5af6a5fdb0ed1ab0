// The checked arguments of linear, rms_norm_linear and pack_linear.
#pragma once

#include "args/packed_weight.h"

namespace higgs_native {

struct Linear {
  float* out;             // [rows, weight.n]
  const float* x;         // [rows, weight.k]
  const float* residual;  // [rows, weight.n], may be `out`; or null
  PackedWeight weight;
  int64_t rows;
};

inline Linear check_linear(
    const Tensor& out, const Tensor& x, const Tensor& weight, const OptionalTensor& scales,
    const OptionalTensor& residual) {
  const char* op = "linear";
  check_devices(op, {{"out", out}, {"x", x}, {"weight", weight}, {"scales", scales}, {"residual", residual}});
  check_tensor(op, "x", x, ScalarType::Float, {kAnySize, kAnySize});
  const int64_t rows = x.size(0);
  check_tensor(op, "out", out, ScalarType::Float, {rows, kAnySize});
  const PackedWeight packed = check_packed_weight(op, "weight", weight, "scales", scales, out.size(1), x.size(1));
  if (residual) check_tensor(op, "residual", *residual, ScalarType::Float, {rows, packed.n});
  return {
      out.mutable_data_ptr<float>(), x.const_data_ptr<float>(), residual ? residual->const_data_ptr<float>() : nullptr,
      packed, rows};
}

struct RmsNormLinear {
  float* out;      // [rows, weight.n]
  const float* x;  // [rows, weight.k]
  PackedWeight weight;
  int64_t rows;
};

inline RmsNormLinear check_rms_norm_linear(
    const Tensor& out, const Tensor& x, const Tensor& norm_weight, const Tensor& weight, const OptionalTensor& scales) {
  const char* op = "rms_norm_linear";
  check_devices(op, {{"out", out}, {"x", x}, {"norm_weight", norm_weight}, {"weight", weight}, {"scales", scales}});
  check_tensor(op, "x", x, ScalarType::Float, {kAnySize, kAnySize});
  const int64_t rows = x.size(0), k = x.size(1);
  check_weight(op, "norm_weight", norm_weight, {k});
  check_tensor(op, "out", out, ScalarType::Float, {rows, kAnySize});
  return {
      out.mutable_data_ptr<float>(), x.const_data_ptr<float>(),
      check_packed_weight(op, "weight", weight, "scales", scales, out.size(1), k), rows};
}

// A panel takes panel_rows rows of `weight`: row `row` is row first_row + row % panel_rows of panel row / panel_rows.
struct PackLinear {
  char* packed;
  const char* weight;  // [n, k], elements of `element_bytes`
  WeightFormat format;
  int64_t n, k, units, panels, first_row, panel_rows, element_bytes;
};

inline PackLinear check_pack_linear(const Tensor& packed, const Tensor& weight, int64_t first_row, int64_t panel_rows) {
  const char* op = "pack_linear";
  check_devices(op, {{"packed", packed}, {"weight", weight}});
  const WeightFormat format = weight_format(op, "packed", packed);
  const ScalarType dtype = is_integer(format) ? ScalarType::Char : packed.scalar_type();
  check_tensor(op, "weight", weight, dtype, {kAnySize, kAnySize});
  const int64_t n = weight.size(0), k = weight.size(1), units = count_units(format, k);
  HIGGS_CHECK(panel_rows >= 1 && panel_rows <= kPanel, op, ": panel_rows must be 1 to ", kPanel, ", got ", panel_rows);
  HIGGS_CHECK(
      first_row >= 0 && first_row <= kPanel - panel_rows, op, ": first_row must be 0 to ", kPanel - panel_rows,
      ", got ", first_row);
  const int64_t panels = (n + panel_rows - 1) / panel_rows;
  check_tensor(op, "packed", packed, packed.scalar_type(), {panels, units, kPanel, word_elements(format)});
  return {
      static_cast<char*>(packed.mutable_data_ptr()),
      static_cast<const char*>(weight.const_data_ptr()),
      format,
      n,
      k,
      units,
      panels,
      first_row,
      panel_rows,
      4 / word_elements(format)};
}

}  // namespace higgs_native
