// How a weight matrix is packed, on every device.
//
// A weight matrix [n, k] is packed into panels of kPanel rows. A panel is a sequence of units of 128 bytes, in the order
// of k, so that a product reads it from one end to the other: a unit holds, for each of its 32 rows in turn, 4 bytes:
//   f32   one weight;
//   bf16  two weights;
//   int8  four weights, signed; a weight row has one float32 scale: weight = scale * integer;
//   int4  eight weights w + 8, the first four in the low halves of the bytes, the others in the high halves; groups of
//         kQuantGroup weights of a row share a float16 scale.
// Rows and columns that fill the last panel, unit or group hold zeros.
#pragma once

#include <cstdint>

namespace higgs_native {

inline constexpr int64_t kPanel = 32;
inline constexpr int64_t kUnitBytes = 128;
inline constexpr int64_t kQuantGroup = 128;

enum class WeightFormat { f32, bf16, int8, int4 };
// How many columns of the matrix a unit holds.
inline constexpr int64_t kUnitColumns[] = {1, 2, 4, 8};

inline constexpr int64_t unit_columns(WeightFormat format) { return kUnitColumns[static_cast<int>(format)]; }
inline constexpr bool is_quantized(WeightFormat format) { return format >= WeightFormat::int8; }

// Units of a packed weight of k columns: whole quantization groups where it is quantized.
inline constexpr int64_t count_units(WeightFormat format, int64_t k) {
  const int64_t columns = unit_columns(format), whole = is_quantized(format) ? kQuantGroup : columns;
  return (k + whole - 1) / whole * whole / columns;
}

}  // namespace higgs_native
