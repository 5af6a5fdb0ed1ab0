// A packed weight (weight_format.h) as the operators get it, and its checks.
#pragma once

#include <optional>

#include "args/checks.h"
#include "common/weight_format.h"

namespace higgs_native {

using OptionalTensor = std::optional<Tensor>;

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
      STD_TORCH_CHECK(
          false, op, ": ", name, " must be float32, bfloat16, float16, float8_e4m3fn, int8 or uint8 (4 bits), got ",
          dtype_name(weight.scalar_type()));
  }
}

// How many elements 4 bytes of a packed weight hold, in torch's eyes.
inline int64_t word_elements(WeightFormat format) {
  return format == WeightFormat::f32 ? 1 : format < WeightFormat::fp8 ? 2 : 4;
}

// Raises `op: name ...` unless the tensors are a packed weight of n rows and k columns.
inline PackedWeight packed_weight(
    const char* op, const char* name, const Tensor& weight, const OptionalTensor& scales, int64_t n, int64_t k) {
  const WeightFormat format = weight_format(op, name, weight);
  const int64_t units = count_units(format, k), panels = (n + kPanel - 1) / kPanel;
  check_tensor(op, name, weight, weight.scalar_type(), {panels, units, kPanel, word_elements(format)});
  STD_TORCH_CHECK(
      scales.has_value() == has_scales(format), op, ": ", name, " of dtype ", dtype_name(weight.scalar_type()),
      has_scales(format) ? " needs scales" : " takes no scales");
  if (scales) check_same_device(op, "scales", *scales, name, weight);
  if (has_row_scales(format)) check_tensor(op, "scales", *scales, ScalarType::Float, {panels, kPanel});
  if (format == WeightFormat::int4) {
    check_tensor(op, "scales", *scales, ScalarType::Half, {panels, units * 8 / kQuantGroup, kPanel});
  }
  return {format, static_cast<const char*>(weight.const_data_ptr()), scales ? scales->const_data_ptr() : nullptr, n, k,
          units};
}

// How many columns the words of a packed weight hold; the last ones may be padding.
inline int64_t packed_columns(const char* op, const char* name, const Tensor& weight) {
  return weight.size(1) * unit_columns(weight_format(op, name, weight));
}

// Packs rows of a matrix: row `row` of `weight` goes to lane first_lane + row % lanes of panel row / lanes.
struct PackLinear {
  char* packed;
  const char* weight;  // [n, k], elements of `element_bytes`
  WeightFormat format;
  int64_t n, k, units, panels, first_lane, lanes, element_bytes;
};

inline PackLinear check_pack_linear(const Tensor& packed, const Tensor& weight, int64_t first_lane, int64_t lanes) {
  const char* op = "pack_linear";
  const WeightFormat format = weight_format(op, "packed", packed);
  const ScalarType dtype = is_integer(format) ? ScalarType::Char : packed.scalar_type();
  check_tensor(op, "weight", weight, dtype, {kAnySize, kAnySize});
  const int64_t n = weight.size(0), k = weight.size(1), units = count_units(format, k);
  STD_TORCH_CHECK(
      lanes >= 1 && first_lane >= 0 && first_lane + lanes <= kPanel, op, ": first_lane and lanes must lie within ",
      kPanel, " lanes, got ", first_lane, " and ", lanes);
  const int64_t panels = (n + lanes - 1) / lanes;
  check_tensor(op, "packed", packed, packed.scalar_type(), {panels, units, kPanel, word_elements(format)});
  check_same_device(op, "weight", weight, "packed", packed);
  return {
      static_cast<char*>(packed.mutable_data_ptr()),
      static_cast<const char*>(weight.const_data_ptr()),
      format,
      n,
      k,
      units,
      panels,
      first_lane,
      lanes,
      4 / word_elements(format)};
}

}  // namespace higgs_native
