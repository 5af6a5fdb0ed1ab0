// The inner kernels behind every product with a packed weight matrix (common/weight_format.h), for one thread.
#pragma once

#include <cstdint>

#include "common/numbers.h"
#include "common/weight_format.h"
#include "cpu/simd/isa.h"

namespace higgs_native::cpu {

// out = x @ weight.T + residual for some panels of the weight.
struct ProductBlock {
  float* out;  // [rows, n], rows `out_stride` apart
  int64_t out_stride;
  const float* residual;  // like out, with its stride; or null
  const char* x;          // prepared, see FormatKernels
  const char* weight;     // the first panel
  const void* scales;     // of the first panel: [panels, kPanel] or [panels, groups, kPanel]; null where there are none
  int64_t rows, n, units;
};

// Rows of x go through a product in groups; what a weight of the format multiplies with is prepared once, a group at a
// time: laid out as the kernels read it, and rounded to bfloat16 (weights in bfloat16 and fp8, avx512_bf16 alone) or to
// 8-bit integers with a scale for each row and group of kQuantGroup columns (int8 and int4).
//
// An output is one chain of additions in the order of k, whatever the number of rows, columns and threads: a row's bits
// do not depend on what else stands in the batch. With int8 and int4 integers are summed within a group, exactly, so those
// products are the same with every instruction set that has fused multiply-adds.
struct FormatKernels {
  int64_t prepared_unit_bytes;  // of one row
  // Writes rows x units * prepared_unit_bytes (+ 8 a row and quantization group) bytes from x [rows, k].
  void (*prepare)(char* to, const float* x, int64_t rows, int64_t k, int64_t units);
  void (*product)(const ProductBlock&);
};

struct LinearKernels {
  int64_t group_rows;  // the most rows in a group
  FormatKernels formats[kWeightFormats];
  // out = x / sqrt(mean(x^2) + eps) * weight, all [k]
  void (*rms_norm_f32)(float* out, const float* x, const float* weight, int64_t k, float eps);
  void (*rms_norm_bf16)(float* out, const float* x, const bfloat16* weight, int64_t k, float eps);
  void (*rms_norm_f16)(float* out, const float* x, const float16* weight, int64_t k, float eps);
  // out = silu(gate) * up, all [n]
  void (*silu_mul)(float* out, const float* gate, const float* up, int64_t n);
};

// Group g of `groups` begins at this row: the groups' sizes differ by one at most.
inline constexpr int64_t group_begin(int64_t g, int64_t groups, int64_t rows) { return g * rows / groups; }

inline constexpr int64_t group_count(int64_t rows, int64_t group_rows) { return (rows + group_rows - 1) / group_rows; }

// Bytes of one prepared row.
inline int64_t prepared_row_bytes(WeightFormat format, const FormatKernels& kernels, int64_t units) {
  const int64_t quantization = is_integer(format) ? units * unit_columns(format) / kQuantGroup * 8 : 0;
  return units * kernels.prepared_unit_bytes + quantization;
}

HIGGS_NATIVE_KERNEL_TABLE(LinearKernels, linear_kernels)

}  // namespace higgs_native::cpu
