// The inner kernels of linear operators with a packed weight matrix (common/weight_format.h), for one thread.
#pragma once

#include <cstdint>

#include "common/numbers.h"
#include "common/weight_format.h"
#include "cpu/simd/isa.h"

namespace higgs_native::cpu {

// out = x @ weight.T + residual for some panels of the weight.
struct GemmBlock {
  float* out;  // [rows, n], rows `out_stride` apart
  int64_t out_stride;
  const float* residual;  // like out, with its stride; or null
  const char* x;          // packed activations, see FormatKernels
  const char* weight;     // the first panel
  const void* scales;  // of the first panel: [panels, kPanel] or [panels, groups, kPanel]; null if the format has none
  int64_t rows, n, units;
};

// Activations are packed once per call, in groups of rows: in the order in which the kernels read them, and rounded
// to bfloat16 (bfloat16 and fp8 weights, from avx512_bf16 on) or to 8-bit integers with a scale per row and group of
// kQuantGroup columns (int8 and int4 weights).
//
// An output is added up in an order that depends on k alone, whatever the number of rows, columns and threads, so a
// row's bits do not depend on its batch. int8 and int4 sums within a group are exact integers, so those outputs are
// the same in every instruction set that has fused multiply-adds.
struct GroupRows {
  int64_t count, begin, end;  // of the group, and those of them that are written
};

struct FormatKernels {
  int64_t group_rows;         // max rows in a group
  int64_t packed_unit_bytes;  // of one row's activations
  int64_t unit_multiple;      // activations are filled up with zeros to a multiple of so many units
  int64_t panels;             // max panels that several groups take at a time
  // Writes activations x [rows.end - rows.begin, k] to their group, and for each row and quantization group 8 bytes.
  void (*pack_activations)(char* to, const float* x, const GroupRows& rows, int64_t k, int64_t units);
  void (*gemm)(const GemmBlock&);
};

struct LinearKernels {
  FormatKernels formats[kWeightFormats];
  // out = x / sqrt(mean(x^2) + eps) * weight, all [k]
  void (*rms_norm_f32)(float* out, const float* x, const float* weight, int64_t k, float eps);
  void (*rms_norm_bf16)(float* out, const float* x, const bfloat16* weight, int64_t k, float eps);
  void (*rms_norm_f16)(float* out, const float* x, const float16* weight, int64_t k, float eps);
  // out = silu(gate) * up, all [n]
  void (*silu_mul)(float* out, const float* gate, const float* up, int64_t n);
};

// The first row of group g of `groups`; sizes of groups differ by one at most.
inline constexpr int64_t group_begin(int64_t g, int64_t groups, int64_t rows) { return g * rows / groups; }

inline constexpr int64_t group_count(int64_t rows, int64_t group_rows) { return (rows + group_rows - 1) / group_rows; }

inline int64_t filled_units(const FormatKernels& kernels, int64_t units) {
  return (units + kernels.unit_multiple - 1) / kernels.unit_multiple * kernels.unit_multiple;
}

// Bytes of one row's packed activations.
inline int64_t packed_row_bytes(WeightFormat format, const FormatKernels& kernels, int64_t units) {
  const int64_t quantization = is_integer(format) ? units * unit_columns(format) / kQuantGroup * 8 : 0;
  return filled_units(kernels, units) * kernels.packed_unit_bytes + quantization;
}

HIGGS_NATIVE_KERNEL_TABLE_WITH_TILES(LinearKernels, linear_kernels)

}  // namespace higgs_native::cpu
