// What the families that multiply with weights share.
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

inline constexpr int64_t kPanelsAtOnce = 4;  // that one row meets at most

// Calls f(begin, end) for pieces of a weight's panels [0, count), a panel costing about `cost` multiply-adds. Threads take
// the pieces as they get done, large ones first: none waits long for another that is slower or was held up.
template <typename F>
void for_panels(int64_t count, int64_t cost, const F& f);

// Bytes of a packed float32 weight of n rows and k columns, and the packing itself of weight [n, k].
int64_t packed_f32_bytes(int64_t n, int64_t k);
void pack_f32(char* packed, const float* weight, int64_t n, int64_t k);

// Normalises rows before a product: rows before `num_text_rows` with `text_weight`, the others with `audio_weight`.
struct RowNorm {
  const Tensor& text_weight;
  const Tensor& audio_weight;
  int64_t num_text_rows;
  float eps;
};

// Prepares x [rows, weight.k] for products with `weight`, normalised first where `norm` is given. The result lives until
// the calling thread's next call with the same tag.
template <typename Tag>
const char* prepare(const PackedWeight& weight, const float* x, int64_t rows, const RowNorm* norm = nullptr);

// The same on this thread alone.
template <typename Tag>
const char* prepare_here(const PackedWeight& weight, const float* x, int64_t rows);

// out = x @ weight.T + residual; out and residual are [rows, weight.n], x is prepared for `weight`.
void product(float* out, const PackedWeight& weight, const char* x, int64_t rows, const float* residual = nullptr);

// The part of it that panels [begin, end) give, on this thread: out and residual point to the first of their columns.
void product_panels(
    float* out, int64_t out_stride, const PackedWeight& weight, int64_t begin, int64_t end, const char* x, int64_t rows,
    const float* residual = nullptr);

// ---- The rest is in the header for its template parameters alone.

template <typename F>
void for_panels(int64_t count, int64_t cost, const F& f) {
  active_isa();  // raises here, on the calling thread, where HIGGS_NATIVE_ISA can't be followed
  const int64_t threads = torch::stable::get_num_threads(), least = ceil_div(kThreadCost, std::max<int64_t>(cost, 1));
  if (threads == 1 || count <= least) {
    if (count > 0) f(int64_t{0}, count);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    int64_t begin = next.load();
    while (begin < count) {
      int64_t piece = std::max(least, (count - begin) / (2 * threads));
      if (piece > kPanelsAtOnce) piece -= piece % kPanelsAtOnce;
      const int64_t end = std::min(begin + piece, count);
      if (!next.compare_exchange_weak(begin, end)) continue;  // begin is now where another thread has got to
      f(begin, end);
      begin = next.load();
    }
  });
}

// Prepares rows [group_begin(first), group_begin(last)) of `groups`.
void prepare_groups(
    char* to, const PackedWeight& weight, const float* x, int64_t rows, const RowNorm* norm, int64_t groups,
    int64_t first, int64_t last);

template <typename Tag>
char* prepared_memory(const PackedWeight& weight, int64_t rows) {
  const int64_t bytes = rows * prepared_row_bytes(weight.format, kernels_of(weight), weight.units);
  return reinterpret_cast<char*>(scratch<Tag>(bytes / sizeof(float)));
}

template <typename Tag>
const char* prepare(const PackedWeight& weight, const float* x, int64_t rows, const RowNorm* norm) {
  char* to = prepared_memory<Tag>(weight, rows);
  const int64_t groups = group_count(rows, linear_kernels().group_rows);
  // A value costs about as much as some multiply-adds.
  for_ranges(groups, 4 * weight.k * rows / groups, [&](int64_t begin, int64_t end) {
    prepare_groups(to, weight, x, rows, norm, groups, begin, end);
  });
  return to;
}

template <typename Tag>
const char* prepare_here(const PackedWeight& weight, const float* x, int64_t rows) {
  char* to = prepared_memory<Tag>(weight, rows);
  const int64_t groups = group_count(rows, linear_kernels().group_rows);
  prepare_groups(to, weight, x, rows, nullptr, groups, 0, groups);
  return to;
}

}  // namespace higgs_native::cpu
