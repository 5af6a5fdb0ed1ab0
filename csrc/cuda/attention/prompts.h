// Attention of many rows, most of which follow each other in one sequence: a warp for each row, and a block for four rows
// in a row. Their keys and values come from L2 once, and then from the multiprocessor's first cache.
//
// attention_kernel, which has a block for each row, would read them from L2 for every row. Here a warp does what the four
// warps do there, one after the other, and adds their sums in the same order: the bits are the same.
#pragma once

#include "cuda/attention/splits.h"

namespace higgs_native::cuda {

namespace {

constexpr int64_t kPromptWarps = 8;  // of a multiprocessor, at least

template <typename T, int kGroup, int kDims>
__global__ void __launch_bounds__(kThreads, 3) prompt_attention_kernel(AttentionArguments a) {
  __shared__ WarpSums<kGroup> sums_of_rows[kWarps][kWarps];  // of each row, what the warps of its split would give
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int items_of_row = a.heads * a.parts, item_of_row = static_cast<int>(blockIdx.x) % items_of_row;
  // The longest rows begin first.
  const int row_block = static_cast<int>(gridDim.x - 1 - blockIdx.x) / items_of_row;
  const int row = row_block * kWarps + warp;
  const int item = row * items_of_row + item_of_row, group = min(kGroup, a.group - item % a.parts * kGroup);
  if (a.is_first) wait_for_earlier_launches();
  allow_next_launch();
  wait_for_earlier_launches();
  if (row >= a.rows) return;

  const Sequence<T> sequence(a, row, item_of_row / a.parts, kDims);
  const Splits splits(sequence.length);
  TensorTile<T, kGroup, kDims> tile;
  tile.load_query(a.query + a.first_column(item, kGroup), group, kDims, lane);
  tile.round_query(a.scale, lane);
  const bool has_element = 4 * lane < kDims;
  float4 merged[kGroup];
  SoftmaxState merged_states[kGroup];
#pragma unroll
  for (int head = 0; head < kGroup; ++head) {
    merged[head] = make_float4(0, 0, 0, 0);
    merged_states[head] = kNothing;
  }
  auto& sums = sums_of_rows[warp];
  for (int split = 0; split < splits.count; ++split) {
    const int begin = split * splits.positions, end = min(begin + splits.positions, sequence.length);
#pragma unroll 1
    for (int part = 0; part < kWarps; ++part) {
      tile.begin_split();
      for (int position = begin + part * kWarpPositions; position < end; position += kTile) {
        const int64_t at = sequence.row_at(position);
        const int count = sequence.length - position;
        tile.load_keys(sequence.keys + at, count, lane);
        tile.load_values(sequence.values + at, count, lane);
        tile.score(min(kWarpPositions, count), kDims, lane);
        tile.weigh(min(kWarpPositions, count), kDims, lane);
      }
      tile.end_split(sums[part], lane);
    }
    __syncwarp();
#pragma unroll
    for (int head = 0; head < kGroup; ++head) {
      if (head >= group || !has_element) continue;
      float4 sum;
      const SoftmaxMerge m = merge(merged_states[head], add_warps(sum, sums, head, lane));
      merged[head] = added(merged[head], m.keep, sum, m.add);
      merged_states[head] = m.state;
    }
    __syncwarp();  // before the next split writes its sums
  }
  float* out = a.out + a.first_column(item, kGroup);
#pragma unroll
  for (int head = 0; head < kGroup; ++head) {
    if (head < group && has_element)
      write_row(out + head * kDims, merged[head], merged_states[head].total, lane, kDims);
  }
}

}  // namespace

}  // namespace higgs_native::cuda
