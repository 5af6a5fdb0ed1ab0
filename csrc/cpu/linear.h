// Products with packed weights, for all families that have them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>

#include "args/packed_weight.h"
#include "cpu/linear_kernels.h"
#include "cpu/parallel.h"

namespace higgs_native::cpu {

inline const FormatKernels& kernels_of(const PackedWeight& weight) {
  return linear_kernels().formats[static_cast<int>(weight.format)];
}

inline constexpr int64_t kPanelsAtOnce = 4;  // max panels that one row takes at a time

// Calls f(begin, end) for chunks of a weight's panels [0, count), a panel costing about `cost` multiply-adds. Guided
// scheduling: chunks shrink, so a slow or preempted thread delays the others little.
template <typename F>
void for_panels(int64_t count, int64_t cost, const F& f);

// Bytes of a packed float32 weight of n rows and k columns, and its packing from weight [n, k].
int64_t packed_f32_bytes(int64_t n, int64_t k);
void pack_f32(char* packed, const float* weight, int64_t n, int64_t k);

// RMSNorm before a product: rows below `num_text_rows` have `text_weight`, the others `audio_weight`.
struct RowNorm {
  const Tensor& text_weight;
  const Tensor& audio_weight;
  int64_t num_text_rows;
  float eps;
};

// Packs activations x [rows, weight.k] for products with `weight`, normalized first if `norm` is given. The result
// lives until the calling thread's next call with the same tag.
template <typename Tag>
const char* pack_activations(const PackedWeight& weight, const float* x, int64_t rows, const RowNorm* norm = nullptr);

// The same, on the calling thread alone.
template <typename Tag>
const char* pack_activations_here(const PackedWeight& weight, const float* x, int64_t rows);

// out = x @ weight.T + residual; out and residual are [rows, weight.n], x is packed for `weight`.
void gemm(float* out, const PackedWeight& weight, const char* x, int64_t rows, const float* residual = nullptr);

// The columns of panels [begin, end) of it, on the calling thread; out and residual point to the first of them.
void gemm_panels(
    float* out, int64_t out_stride, const PackedWeight& weight, int64_t begin, int64_t end, const char* x, int64_t rows,
    const float* residual = nullptr);

// ---- Definitions of the templates

template <typename F>
void for_panels(int64_t count, int64_t cost, const F& f) {
  active_isa();  // raises on the calling thread if HIGGS_NATIVE_ISA is wrong
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t min_chunk = ceil_div(kThreadCost, std::max<int64_t>(cost, 1));
  if (threads == 1 || count <= min_chunk) {
    if (count > 0) f(int64_t{0}, count);
    return;
  }
  std::atomic<int64_t> next{0};
  parallel_for(threads, 1, [&](int64_t, int64_t) {
    int64_t begin = next.load();
    while (begin < count) {
      int64_t chunk = std::max(min_chunk, (count - begin) / (2 * threads));
      if (chunk > kPanelsAtOnce) chunk -= chunk % kPanelsAtOnce;
      const int64_t end = std::min(begin + chunk, count);
      if (!next.compare_exchange_weak(begin, end)) continue;  // `begin` is now another thread's end
      f(begin, end);
      begin = next.load();
    }
  });
}

// Packs groups [first, last) of `groups`.
void pack_groups(
    char* to, const PackedWeight& weight, const float* x, int64_t rows, const RowNorm* norm, int64_t groups,
    int64_t first, int64_t last);

template <typename Tag>
char* packed_memory(const PackedWeight& weight, int64_t rows) {
  const int64_t bytes = rows * packed_row_bytes(weight.format, kernels_of(weight), weight.units);
  return reinterpret_cast<char*>(scratch<Tag>(bytes / sizeof(float)));
}

template <typename Tag>
const char* pack_activations(const PackedWeight& weight, const float* x, int64_t rows, const RowNorm* norm) {
  char* to = packed_memory<Tag>(weight, rows);
  const int64_t groups = group_count(rows, kernels_of(weight).group_rows);
  // Packing a value costs about as much as 4 multiply-adds.
  for_ranges(groups, 4 * weight.k * rows / groups, [&](int64_t begin, int64_t end) {
    pack_groups(to, weight, x, rows, norm, groups, begin, end);
  });
  return to;
}

template <typename Tag>
const char* pack_activations_here(const PackedWeight& weight, const float* x, int64_t rows) {
  char* to = packed_memory<Tag>(weight, rows);
  const int64_t groups = group_count(rows, kernels_of(weight).group_rows);
  pack_groups(to, weight, x, rows, nullptr, groups, 0, groups);
  return to;
}

}  // namespace higgs_native::cpu
