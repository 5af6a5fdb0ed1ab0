// Attention of many rows, most of which follow each other in one sequence: a warp for each row, and a block for four rows
// in a row. Their keys and values come from L2 once, and then from the multiprocessor's first cache.
//
// attention_kernel, which has a block for each row, would read them from L2 for every row. Here a warp does what the four
// warps do there, one part of a split after the other, and adds their sums in the same order: the bits are the same. A
// lane merges the sums that products leave in it, and the keys of the next positions are in flight.
#pragma once

#include "cuda/attention/splits.h"

namespace higgs_native::cuda {

namespace {

constexpr int64_t kPromptWarps = 8;  // of a multiprocessor, at least

template <typename T, int kGroup, int kDims>
__global__ void __launch_bounds__(kThreads, 3) prompt_attention_kernel(AttentionArguments a) {
  using Tile = TensorTile<T, kGroup, kDims>;
  // The results of a split's parts but the last one. Each thread reads back its own.
  __shared__ float4 part_sums[kWarps - 1][Tile::kLaneQuads][kThreads];
  __shared__ SoftmaxState part_states[kWarps - 1][kThreads];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int items_of_row = a.heads * a.parts, item_of_row = static_cast<int>(blockIdx.x) % items_of_row;
  // The longest rows begin first.
  const int row_block = static_cast<int>(gridDim.x - 1 - blockIdx.x) / items_of_row;
  const int row = row_block * kWarps + warp;
  const int item = row * items_of_row + item_of_row, group = min(kGroup, a.group - item_of_row % a.parts * kGroup);
  const int64_t first_column = a.first_column(item, kGroup);
  if (a.is_first) wait_for_earlier_launches();
  allow_next_launch();
  wait_for_earlier_launches();
  if (row >= a.rows) return;

  const Sequence<T> sequence(a, row, item_of_row / a.parts, kDims);
  const Splits splits(sequence.length);
  Tile tile;
  tile.load_query(a.query + first_column, group, kDims, lane);
  int64_t at = sequence.row_at(0);
  tile.load_keys(sequence.keys + at, sequence.length, lane);
  tile.round_query(a.scale, lane);
  float4 merged[Tile::kLaneQuads] = {};
  SoftmaxState merged_state = kNothing;
  for (int begin = 0; begin < sequence.length; begin += splits.positions) {
    const int end = min(begin + splits.positions, sequence.length);
#pragma unroll 1
    for (int part = 0; part < kWarps; ++part) {
      const int first = begin + part * kWarpPositions, first_of_next = first + kWarpPositions;
      tile.begin_split();
      for (int position = first; position < end; position += kTile) {
        // The next positions: of the part, or else of the next part or split.
        int next = position + kTile;
        if (next >= end) next = part + 1 < kWarps && first_of_next < end ? first_of_next : begin + splits.positions;
        const int count = sequence.length - position, next_count = sequence.length - next;
        const int next_page = sequence.page_at(next);
        tile.load_values(sequence.values + at, count, lane);
        tile.score(min(kWarpPositions, count), kDims, lane);
        at = sequence.row_in(next_page, next);
        if (next_count > 0) tile.load_keys(sequence.keys + at, next_count, lane);
        tile.weigh(min(kWarpPositions, count), kDims, lane);
      }
      tile.end_split();
      if (part == kWarps - 1) break;
      part_states[part][thread] = {tile.maximum, tile.total};
#pragma unroll
      for (int quad = 0; quad < Tile::kLaneQuads; ++quad) part_sums[part][quad][thread] = tile.lane_sums(quad);
    }
    SoftmaxState states[kWarps], state = kNothing;
#pragma unroll
    for (int part = 0; part < kWarps; ++part) {
      states[part] = part < kWarps - 1 ? part_states[part][thread] : SoftmaxState{tile.maximum, tile.total};
      state.maximum = fmaxf(state.maximum, states[part].maximum);
    }
    float4 sums[Tile::kLaneQuads] = {};
#pragma unroll
    for (int part = 0; part < kWarps; ++part) {
      const float factor = expf(states[part].maximum - state.maximum);
      state.total = fmaf(states[part].total, factor, state.total);
#pragma unroll
      for (int quad = 0; quad < Tile::kLaneQuads; ++quad) {
        sums[quad] =
            added(part < kWarps - 1 ? part_sums[part][quad][thread] : tile.lane_sums(quad), factor, sums[quad]);
      }
    }
    const SoftmaxMerge m = merge(merged_state, state);
    merged_state = m.state;
#pragma unroll
    for (int quad = 0; quad < Tile::kLaneQuads; ++quad) merged[quad] = added(merged[quad], m.keep, sums[quad], m.add);
  }
  const int head = lane % 4;
  if (head >= group) return;
  float* out = a.out + first_column + head * kDims;
#pragma unroll
  for (int quad = 0; quad < Tile::kLaneQuads; ++quad) {
    const int dimension = Tile::lane_dimension(quad, lane);
    write_row(out + dimension, merged[quad], merged_state.total, 0, kDims - dimension);
  }
}

}  // namespace

}  // namespace higgs_native::cuda
