// The layout of a packed weight matrix, on every device.
//
// A weight matrix [n, k] is packed into panels of kPanel rows. A panel is a sequence of units of 128 bytes, in the
// order of k, so that a kernel reads it front to back. A unit holds 4 bytes of each of its 32 rows in turn:
//   f32   one weight;
//   bf16  two weights;
//   f16   two weights;
//   fp8   four weights, e4m3 without infinities; a weight row has one float32 scale: weight = scale * e4m3;
//   int8  four weights, signed; a weight row has one float32 scale: weight = scale * integer;
//   int4  eight weights w + 8, the first four in the low halves of the bytes, the others in the high halves; groups of
//         kQuantGroup weights of a row share a float16 scale.
// Padding rows and columns of the last panel, unit and group are zero. Integer weights are multiplied with activations
// rounded to 8 bits in groups of kQuantGroup columns, so their units fill whole groups.
#pragma once

#include <cstdint>

namespace higgs_native {

inline constexpr int64_t kPanel = 32;
inline constexpr int64_t kUnitBytes = 128;
inline constexpr int64_t kQuantGroup = 128;
// A group of activations of no larger magnitude is rounded to zeros: 127 / magnitude overflows below 3.8e-37.
inline constexpr float kMinRounded = 1e-30f;

enum class WeightFormat { f32, bf16, f16, fp8, int8, int4 };
inline constexpr int kWeightFormats = 6;
// Columns of the matrix per unit.
inline constexpr int64_t kUnitColumns[kWeightFormats] = {1, 2, 2, 4, 4, 8};

inline constexpr int64_t unit_columns(WeightFormat format) { return kUnitColumns[static_cast<int>(format)]; }
inline constexpr bool has_scales(WeightFormat format) { return format >= WeightFormat::fp8; }
// One scale per weight row, applied to the finished sum.
inline constexpr bool has_row_scales(WeightFormat format) {
  return format == WeightFormat::fp8 || format == WeightFormat::int8;
}
inline constexpr bool is_integer(WeightFormat format) { return format >= WeightFormat::int8; }

// Units of a packed weight of k columns.
inline constexpr int64_t count_units(WeightFormat format, int64_t k) {
  const int64_t columns = unit_columns(format), whole = is_integer(format) ? kQuantGroup : columns;
  return (k + whole - 1) / whole * whole / columns;
}

// Bytes of the scales of a panel.
inline constexpr int64_t panel_scale_bytes(WeightFormat format, int64_t units) {
  if (has_row_scales(format)) return kPanel * 4;
  return has_scales(format) ? units * unit_columns(format) / kQuantGroup * kPanel * 2 : 0;
}

}  // namespace higgs_native
