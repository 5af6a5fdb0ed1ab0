// GEMM epilogues (see Epilogue): a residual is added to the finished sums, or SiLU combines them, or they are rotated
// and written into the KV cache.
#pragma once

#include "args/dual_ffn.h"
#include "cuda/linear.h"
#include "cuda/linear/activations.h"
#include "cuda/linear/weight_formats.h"

namespace higgs_native::cuda {

__device__ __forceinline__ void QkvTargets::rotate_and_write(int row, int head, int i, float a, float b) const {
  const int half = head_dim / 2;
  if (head < query_heads + kv_heads) {
    const float* angles = table + static_cast<int64_t>(positions[row]) * head_dim;
    const float cosine = angles[i], sine = angles[half + i];
    const float first = a * cosine - b * sine;
    b = b * cosine + a * sine;
    a = first;
  }
  if (head < query_heads) {
    float* to = query + (static_cast<int64_t>(row) * query_heads + head) * head_dim;
    to[i] = a;
    to[half + i] = b;
    return;
  }
  head -= query_heads;
  void* cache = head < kv_heads ? keys : values;
  const int position = cache_positions[row], entry = position & ((1 << page_shift) - 1);
  const int64_t page = page_table[static_cast<int64_t>(slots[row]) * max_pages + (position >> page_shift)];
  const int64_t at = (((page * kv_heads + head % kv_heads) << page_shift) + entry) * head_dim + i;
  if (type == NumberType::bfloat16) {
    static_cast<bfloat16*>(cache)[at] = to_bfloat16(a);
    static_cast<bfloat16*>(cache)[at + half] = to_bfloat16(b);
  } else if (type == NumberType::float16) {
    static_cast<float16*>(cache)[at] = to_float16(a);
    static_cast<float16*>(cache)[at + half] = to_float16(b);
  } else {
    static_cast<float*>(cache)[at] = a;
    static_cast<float*>(cache)[at + half] = b;
  }
}

namespace {

// The sums of a block in shared memory: [panel * 32 + weight row][row of x].
template <int kRows>
struct BlockSums {
  static constexpr int kStride = kRows + 1;
  float* values;
  const float* norm_factors;   // [kRows], of RMSNorm
  const float* weight_scales;  // of weight rows: [panels of the weight, kPanel]; or null
  const int* panels;           // the block's panels, by their index in the weight
  const float* added;          // Gemm::added from the block's first row on; or null
  int added_stride;

  __device__ __forceinline__ float operator()(int panel, int weight_row, int row) const {
    const float sum = values[(panel * static_cast<int>(kPanel) + weight_row) * kStride + row] * norm_factors[row];
    const int column = panels[panel] * static_cast<int>(kPanel) + weight_row;
    const float scaled = weight_scales ? sum * weight_scales[column] : sum;
    return added ? scaled + added[row * added_stride + column] : scaled;
  }
};

// The sums of rows of x from `first_row` on.
template <WeightFormat F, int kRows>
__device__ __forceinline__ BlockSums<kRows> block_sums(
    const Gemm& p, float* values, const float* norm_factors, const int* panels, int first_row) {
  const int stride = static_cast<int>((p.weight.n + kPanel - 1) / kPanel * kPanel);
  return {
      values,
      norm_factors,
      Step<F>::kRowScales ? static_cast<const float*>(p.weight.scales) : nullptr,
      panels,
      p.added ? p.added + static_cast<int64_t>(first_row) * stride : nullptr,
      stride};
}

__device__ __forceinline__ float silu_mul(float gate, float up) { return gate / (1 + expf(-gate)) * up; }

// Applies the epilogue to a block's sums, and writes its outputs. `first_row`: the block's first row of x, of `rows`.
// `paired`: panels i and i + kPanels / 2 of the block hold the two halves of a head.
template <int kPanels, int kRows>
__device__ __forceinline__ void finish(
    const Gemm& p, const BlockSums<kRows>& sums, int first_row, int rows, bool paired) {
  constexpr int kPanelRows = static_cast<int>(kPanel), kHalf = static_cast<int>(kHalfPanel);
  const int n = static_cast<int>(p.weight.n);
  const int thread = static_cast<int>(threadIdx.x);
  if (p.epilogue == Epilogue::kResidual) {
    for (int i = thread; i < kPanels * kPanelRows * rows; i += kThreads) {
      const int r = i % kPanelRows, panel = i / kPanelRows % kPanels, row = i / kPanelRows / kPanels;
      const int column = sums.panels[panel] * kPanelRows + r;
      if (column >= n) continue;
      const int64_t at = static_cast<int64_t>(first_row + row) * n + column;
      p.out[at] = sums(panel, r, row) + (p.residual ? p.residual[at] : 0.f);
    }
  } else if (p.epilogue == Epilogue::kSiluMul) {
    for (int i = thread; i < kPanels * kHalf * rows; i += kThreads) {
      const int r = i % kHalf, panel = i / kHalf % kPanels, row = i / kHalf / kPanels;
      const int column = sums.panels[panel] * kHalf + r;
      if (column >= p.n_out) continue;
      const float activated = silu_mul(sums(panel, r, row), sums(panel, kHalf + r, row));
      p.out[static_cast<int64_t>(first_row + row) * p.n_out + column] = activated;
    }
  } else if (paired) {
    constexpr int kPairs = kPanels > 1 ? kPanels / 2 : 1;
    for (int i = thread; i < kPairs * kPanelRows * rows; i += kThreads) {
      const int r = i % kPanelRows, pair = i / kPanelRows % kPairs, row = i / kPanelRows / kPairs;
      const int weight_row = sums.panels[pair] * kPanelRows;
      if (weight_row >= n) continue;
      p.rope.rotate_and_write(
          first_row + row, weight_row / p.rope.head_dim, weight_row % p.rope.head_dim + r, sums(pair, r, row),
          sums(pair + kPanels / 2, r, row));
    }
  } else {
    const int half = p.rope.head_dim / 2;
    for (int i = thread; i < kPanels * kPanelRows * rows; i += kThreads) {
      const int r = i % kPanelRows, panel = i / kPanelRows % kPanels, row = i / kPanelRows / kPanels;
      const int weight_row = sums.panels[panel] * kPanelRows + r, dimension = weight_row % p.rope.head_dim;
      if (weight_row >= n || dimension >= half) continue;
      p.rope.rotate_and_write(
          first_row + row, weight_row / p.rope.head_dim, dimension, sums(panel, r, row), sums(panel, r + half, row));
    }
  }
}

// The same for products of warpgroups. If the GEMM behind it multiplies by warpgroups too, SiLU's outputs are packed at
// once: each warp takes a tile of rows and a K-step of that GEMM, as pack_activations_kernel does.
template <WeightFormat F, int kPanels, int kRows>
__device__ __forceinline__ void finish_or_pack(
    const Gemm& p, const BlockSums<kRows>& sums, int first_row, int rows, bool paired) {
  using S = Step<F>;
  constexpr int kHalf = static_cast<int>(kHalfPanel), kSteps = kPanels * kHalf / S::kColumns;
  static_assert(kPanels * kHalf % S::kColumns == 0);
  if (!p.packed_out) return finish<kPanels>(p, sums, first_row, rows, paired);
  const PackedActivations to = {p.packed_out, nullptr, nullptr, nullptr};
  const int steps = (p.n_out + S::kColumns - 1) / S::kColumns, first_step = sums.panels[0] * kHalf / S::kColumns;
  const int tiles = (rows + kRowTile - 1) / kRowTile;
  for (int i = warp_index(); i < tiles * kSteps; i += kWarps) {
    const int tile = i / kSteps, of_block = i % kSteps, row = min(tile * kRowTile + group_lane(), rows - 1);
    if (first_step + of_block >= steps) continue;
    float v[S::kLaneColumns];
#pragma unroll
    for (int j = 0; j < S::kLaneColumns; ++j) {
      const int column = of_block * S::kColumns + lane_in_group() * S::kLaneColumns + j;  // of the block's outputs
      const int panel = column / kHalf, r = column % kHalf;
      const bool exists = first_step * S::kColumns + column < p.n_out;
      v[j] = exists ? silu_mul(sums(panel, r, row), sums(panel, kHalf + r, row)) : 0.f;
    }
    to.write(words_of<F>(v), first_row / kRowTile + tile, first_step + of_block, steps);
  }
}

// Value i of a norm's weight.
__device__ __forceinline__ float norm_weight(const void* weight, NumberType type, int i) {
  if (type == NumberType::float32) return static_cast<const float*>(weight)[i];
  if (type == NumberType::bfloat16) return to_float(static_cast<const bfloat16*>(weight)[i]);
  return to_float(static_cast<const float16*>(weight)[i]);
}

// A launch after the GEMM: each warp normalizes one head (if it has a norm), rotates it and writes it.
__global__ void __launch_bounds__(kThreads)
    rope_kernel(QkvTargets rope, const float* projected, int n, int rows, NumberType norm_type, float eps) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int head_dim = rope.head_dim, half = head_dim / 2, heads = n / head_dim;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  const int row = static_cast<int>(item / heads), head = static_cast<int>(item % heads);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (row >= rows) return;
  const float* from = projected + static_cast<int64_t>(row) * n + head * head_dim;
  const void* norm = head < rope.query_heads                   ? rope.query_norm
                     : head < rope.query_heads + rope.kv_heads ? rope.key_norm
                                                               : nullptr;
  float factor = 1;
  if (norm) {
    float squares = 0;
    for (int i = lane; i < head_dim; i += kWarp) squares += from[i] * from[i];
    factor = 1 / sqrtf(warp_sum(squares) / static_cast<float>(head_dim) + eps);
  }
  for (int i = lane; i < half; i += kWarp) {
    float a = from[i], b = from[half + i];
    if (norm) {
      a *= factor * norm_weight(norm, norm_type, i);
      b *= factor * norm_weight(norm, norm_type, half + i);
    }
    rope.rotate_and_write(row, head, i, a, b);
  }
}

}  // namespace

}  // namespace higgs_native::cuda
