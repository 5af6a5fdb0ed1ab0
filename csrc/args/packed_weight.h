// A packed weight (common/weight_format.h) as the operators take it, and its checks.
#pragma once

#include "args/checks.h"
#include "common/weight_format.h"

namespace higgs_native {

// A packed weight matrix of n rows and k columns.
struct PackedWeight {
  WeightFormat format;
  const char* data;
  const void* scales;  // fp8, int8: [panels, kPanel], float32; int4: [panels, groups, kPanel], float16; else null
  int64_t n, k, units;
};

inline WeightFormat weight_format(const char* op, const char* name, const Tensor& weight) {
  switch (weight.scalar_type()) {
    case ScalarType::Float: return WeightFormat::f32;
    case ScalarType::BFloat16: return WeightFormat::bf16;
    case ScalarType::Half: return WeightFormat::f16;
    case ScalarType::Float8_e4m3fn: return WeightFormat::fp8;
    case ScalarType::Char: return WeightFormat::int8;
    case ScalarType::Byte: return WeightFormat::int4;
    default:
      HIGGS_CHECK(
          false, op, ": ", name, " must be float32, bfloat16, float16, float8_e4m3fn, int8 or uint8 (4 bits), got ",
          dtype_name(weight.scalar_type()));
  }
}

// Elements in 4 bytes of a packed weight, as torch counts them.
inline int64_t word_elements(WeightFormat format) {
  return format == WeightFormat::f32 ? 1 : format < WeightFormat::fp8 ? 2 : 4;
}

// The tensors must be a packed weight of n rows and k columns.
inline PackedWeight check_packed_weight(
    const char* op, const char* name, const Tensor& weight, const char* scales_name, const OptionalTensor& scales,
    int64_t n, int64_t k) {
  const WeightFormat format = weight_format(op, name, weight);
  HIGGS_CHECK(
      n <= kMaxSize && k <= kMaxSize, op, ": ", name, " must have at most ", kMaxSize, " rows and columns, got ", n,
      " and ", k);
  const int64_t units = count_units(format, k), panels = (n + kPanel - 1) / kPanel;
  check_tensor(op, name, weight, weight.scalar_type(), {panels, units, kPanel, word_elements(format)});
  HIGGS_CHECK(
      scales.has_value() == has_scales(format), op, ": ", scales_name, " must be ",
      has_scales(format) ? "a tensor" : "None", " for ", name, " of dtype ", dtype_name(weight.scalar_type()), ", got ",
      scales ? "a tensor" : "None");
  if (has_row_scales(format)) check_tensor(op, scales_name, *scales, ScalarType::Float, {panels, kPanel});
  if (format == WeightFormat::int4) {
    check_tensor(op, scales_name, *scales, ScalarType::Half, {panels, units * 8 / kQuantGroup, kPanel});
  }
  return {format, static_cast<const char*>(weight.const_data_ptr()), scales ? scales->const_data_ptr() : nullptr, n, k,
          units};
}

// A packed weight's columns, with those that fill its last unit.
inline int64_t packed_columns(const char* op, const char* name, const Tensor& weight) {
  return weight.size(1) * unit_columns(weight_format(op, name, weight));
}

}  // namespace higgs_native
