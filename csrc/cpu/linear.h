// GEMM with packed weights, for all families that multiply by them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "args/packed_weight.h"
#include "cpu/linear_kernels.h"
#include "cpu/parallel.h"

namespace higgs_native::cpu {

inline const FormatKernels& kernels_of(const PackedWeight& weight) {
  return linear_kernels().formats[static_cast<int>(weight.format)];
}

// Max panels that `rows` rows take at a time.
inline int64_t panels_at_once(const PackedWeight& weight, int64_t rows) {
  constexpr int64_t kOneRow = 4;
  const FormatKernels& kernels = kernels_of(weight);
  return rows > kernels.group_rows ? std::max(kOneRow, kernels.panels) : kOneRow;
}

// Bytes of a packed float32 weight of n rows and k columns, and its packing from weight [n, k].
int64_t packed_f32_bytes(int64_t n, int64_t k);
void pack_f32(char* packed, const float* weight, int64_t n, int64_t k);

// out = RMSNorm of x [k] with `weight`; out may be x.
void rms_norm(float* out, const float* x, const Tensor& weight, int64_t k, float eps);

// RMSNorm before a GEMM: rows below `num_text_rows` have `text_weight`, the others `audio_weight`.
struct RowNorm {
  const Tensor& text_weight;
  const Tensor& audio_weight;
  int64_t num_text_rows;
  float eps;
};

// Packs activations x [rows, weight.k] for GEMMs with `weight`, normalized first if `norm` is given. The result
// lives until the calling thread's next call with the same tag.
template <typename Tag>
const char* pack_activations(const PackedWeight& weight, const float* x, int64_t rows, const RowNorm* norm = nullptr);

// The same, on the calling thread alone.
template <typename Tag>
const char* pack_activations_here(const PackedWeight& weight, const float* x, int64_t rows);

class LowRankSum;

// out = x @ weight.T + residual + added; out and residual are [rows, weight.n], x is packed for `weight`.
void gemm(
    float* out, const PackedWeight& weight, const char* x, int64_t rows, const float* residual = nullptr,
    const LowRankSum* added = nullptr);

// The columns of panels [begin, end) of it, on the calling thread; out and residual point to the first of them.
void gemm_panels(
    float* out, int64_t out_stride, const PackedWeight& weight, int64_t begin, int64_t end, const char* x, int64_t rows,
    const float* residual = nullptr);

// ---- Definitions of the templates

// Packs rows [first, last) of `rows`.
void pack_rows(
    char* to, const PackedWeight& weight, const float* x, int64_t rows, const RowNorm* norm, int64_t first,
    int64_t last);

template <typename Tag>
char* packed_memory(const PackedWeight& weight, int64_t rows) {
  const int64_t bytes = rows * packed_row_bytes(weight.format, kernels_of(weight), weight.units);
  return reinterpret_cast<char*>(scratch<Tag>(bytes / sizeof(float)));
}

template <typename Tag>
const char* pack_activations(const PackedWeight& weight, const float* x, int64_t rows, const RowNorm* norm) {
  char* to = packed_memory<Tag>(weight, rows);
  // Packing a value costs about as much as 4 multiply-adds.
  for_ranges(rows, 4 * weight.k, [&](int64_t begin, int64_t end) { pack_rows(to, weight, x, rows, norm, begin, end); });
  return to;
}

template <typename Tag>
const char* pack_activations_here(const PackedWeight& weight, const float* x, int64_t rows) {
  char* to = packed_memory<Tag>(weight, rows);
  pack_rows(to, weight, x, rows, nullptr, 0, rows);
  return to;
}

}  // namespace higgs_native::cpu
