// GEMM mainloop, in gemm_kernel: warps share the depth k, and their sums are added in a fixed order before the
// epilogue.
#pragma once

#include <algorithm>

#include "cuda/linear/epilogues.h"
#include "cuda/linear/products.h"
#include "cuda/linear/shared_activations.h"
#include "cuda/linear/weight_formats.h"

namespace higgs_native::cuda {

namespace {

// Where BlockSums has sum `i` of lane `lane`, from the place of the lane's first panel and tile on; -1 for a copy.
template <WeightFormat F, int kPanels, int kRows>
__device__ __forceinline__ int index_of_sum(int i, int lane, int stride) {
  constexpr int kOfPanel = Sums<F, kPanels, kRows>::kOfPanel, kTiles = kRows / kRowTile;
  const int g = lane / 4, t = lane % 4;
  const int first = i / kOfPanel * static_cast<int>(kPanel) + 4 * g, at = i % kOfPanel;
  if constexpr (F == WeightFormat::f32) {
    const int row = at % kRowTile;  // the four lanes of a group have the same sums
    return row % 4 == t ? (first + at / kRowTile) * stride + row : -1;
  } else if constexpr (kRows == kHalfTile) {
    return (first + t / 2 * 2 + at / 2) * stride + t % 2 * 2 + at % 2;
  } else {
    const int half = at / (4 * kTiles), tile = at / 4 % kTiles, j = at % 4;
    return (first + 2 * half + j / 2) * stride + tile * kRowTile + 2 * t + j % 2;
  }
}

// Adds the sums of all warps in the order of their numbers, and writes them as BlockSums reads them. `exchanged`: shared
// memory for the sums of half the warps. A barrier must follow.
template <WeightFormat F, int kPanels, int kRows>
__device__ __forceinline__ void add_warps(
    const Sums<F, kPanels, kRows>& sums, float* exchanged, float* values, int warp, int lane) {
  constexpr int kCount = Sums<F, kPanels, kRows>::kCount, kOfThread = (kCount * kWarp + kThreads - 1) / kThreads;
  constexpr int kTurns = 2, kOfTurn = kWarps / kTurns;
  const int thread = static_cast<int>(threadIdx.x);
  const bool adds = kCount * kWarp >= kThreads || thread < kCount * kWarp;
  float total[kOfThread] = {};
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    if (turn > 0) __syncthreads();
    if (warp / kOfTurn == turn) {
      float* slot = exchanged + warp % kOfTurn * kCount * kWarp + lane;
#pragma unroll
      for (int i = 0; i < kCount; ++i) slot[i * kWarp] = sums.v[i];
    }
    __syncthreads();
    if (!adds) continue;
#pragma unroll
    for (int j = 0; j < kOfThread; ++j) {
#pragma unroll
      for (int of = 0; of < kOfTurn; ++of) {
        const float sum = exchanged[of * kCount * kWarp + j * kThreads + thread];
        total[j] = turn == 0 && of == 0 ? sum : total[j] + sum;
      }
    }
  }
  if (!adds) return;
#pragma unroll
  for (int j = 0; j < kOfThread; ++j) {
    const int i = (j * kThreads + thread) / kWarp;
    const int to = index_of_sum<F, kPanels, kRows>(i, lane, BlockSums<kRows>::kStride);
    if (to >= 0) values[to] = total[j];
  }
}

// Panel `i` of a block. With `pair_distance` above 0, panels i and i + kPanels / 2 are so far from each other: the halves
// of a head.
template <int kPanels>
__device__ __forceinline__ int panel_of_block(int block, int i, int pair_distance) {
  if (pair_distance == 0) return block * kPanels + i;
  constexpr int kPairs = kPanels > 1 ? kPanels / 2 : 1;
  const int pair = block * kPairs + i % kPairs;
  return pair / pair_distance * 2 * pair_distance + pair % pair_distance + i / kPairs * pair_distance;
}

// Whether a block keeps its rows of x in shared memory.
template <WeightFormat F, bool kPacked>
inline constexpr bool kKeepsActivations = Step<F>::kInteger && !kPacked;

// Bytes of shared memory: the sums that warps exchange, then what finish() reads. SharedActivations follow.
template <WeightFormat F, int kPanels, int kRows>
inline constexpr size_t kSumBytes = (kWarps / 2 * Sums<F, kPanels, kRows>::kCount * kWarp +
                                     kPanels * kPanel * BlockSums<kRows>::kStride + std::max(kRows, kRowTile)) *
                                    sizeof(float);

// The least blocks that a multiprocessor must have room for. Where memory is the limit a second block loads while the
// first one waits; with others the registers are worth more to the loads of one block.
template <WeightFormat F, bool kPacked>
inline constexpr int kBlocksAtOnce = !kPacked && (F == WeightFormat::bf16 || F == WeightFormat::f16) ? 2 : 1;

// A block multiplies kPanels panels and kRows rows of x: tiles, or half a tile. If it keeps its rows, it goes on with the
// panels that lie gridDim.y blocks further. kPacked: x is read from `packed`. `steps`:
// K-steps of the weight. `pair_distance`: if above 0, the distance of a block's two panels, in panels (half a head, for
// Epilogue::kRope). `is_first`: whether this is the first launch of the operator.
template <WeightFormat F, int kPanels, int kRows, bool kPacked>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<F, kPacked>)
    gemm_kernel(Gemm p, PackedActivations packed, int steps, int pair_distance, bool is_first) {
  using LaneSums = Sums<F, kPanels, kRows>;
  constexpr bool kIsHalfTile = kRows == kHalfTile;
  static_assert(!kIsHalfTile || (Step<F>::kInteger && !kPacked));
  constexpr int kTiles = kRows / kRowTile;  // none for half a tile
  __shared__ float squares_of_warps[kWarps][kRowTile];
  constexpr bool kShared = kKeepsActivations<F, kPacked>;
  __shared__ int shared_panels[kShared ? 2 : 1][kPanels];  // of even and of odd turns
  const int warp = warp_index(), lane = static_cast<int>(threadIdx.x) % kWarp;
  const int num_panels = static_cast<int>((p.weight.n + kPanel - 1) / kPanel);
  const int units = static_cast<int>(p.weight.units);

  const char* weight[kPanels];
  const uint16_t* scales[kPanels];  // of 4-bit weights
  auto take_panels = [&](int turn) {
    const int at = static_cast<int>(blockIdx.y + turn * gridDim.y);
#pragma unroll
    for (int i = 0; i < kPanels; ++i) {
      const int panel = panel_of_block<kPanels>(at, i, pair_distance);
      // A block without a second panel reads the weight's last panel; finish() leaves these sums out.
      const int64_t read = min(panel, num_panels - 1);
      weight[i] = p.weight.data + read * units * kUnitBytes + group_lane() * 16;
      scales[i] = static_cast<const uint16_t*>(p.weight.scales) + read * steps * kPanel + 4 * group_lane();
      if (threadIdx.x == 0) shared_panels[turn % 2][i] = panel;
    }
  };
  take_panels(0);

  // Prefetch depth: K-steps in flight per warp. With few blocks, a warp needs 8 KB outstanding to saturate bandwidth.
  // With packed activations, a load is multiplied by 4 or more tiles, whose sums take the registers: depth 2. The sums
  // of int4 and fp8, and of 8 tiles, leave room for one block per multiprocessor at either depth, so it needs the 8 KB
  // per warp: depth 4. A warp has 3 steps of a model's 3072 columns: with half a tile all are in flight before it waits
  // for x, but for the two panels of int8, whose registers would be too many.
  constexpr bool kHasOneBlock = F == WeightFormat::int4 || F == WeightFormat::fp8 || kTiles == 8;
  constexpr bool kIsDeep = kPanels * Step<F>::kChunks == 4 && (!kPacked || kHasOneBlock);
  constexpr bool kIsHalfDeep = kIsHalfTile && kPanels * Step<F>::kChunks == 8;
  constexpr int kPrefetchDepth = kIsDeep ? 4 : kIsHalfDeep ? 3 : 2;
  Weights<F, kPanels> prefetched[kPrefetchDepth];
  auto load_first_steps = [&] {
#pragma unroll
    for (int i = 0; i < kPrefetchDepth; ++i) {
      const int step = warp + i * kWarps;
      if (step < steps) load_weights<F, kPanels>(prefetched[i], weight, scales, step, units);
    }
  };
  if (is_first) wait_for_earlier_launches();  // see cuda/device.h: another launch may have written the weights
  load_first_steps();
  allow_next_launch();
  wait_for_earlier_launches();

  float squares = 0;
  const SharedActivations<F> shared_x(dynamic_shared() + kSumBytes<F, kPanels, kRows>, steps, p.rows);
  if constexpr (kShared) {
    shared_x.fill(p);
    __syncthreads();
    squares = shared_x.sum_squares();
  }

  const int block = static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x);
  const int blocks = static_cast<int>(gridDim.y * gridDim.x);
  if (!kPacked && p.next_first) p.next.prefetch(block, blocks);

  const int first_tile = static_cast<int>(blockIdx.x) * kTiles;
  for (int turn = 0;; ++turn) {
    LaneSums sums;
#pragma unroll
    for (int i = 0; i < LaneSums::kCount; ++i) sums.v[i] = 0;
    // With one panel, registers are left for x of the next step: weights that L2 has come faster than x would.
    constexpr bool kLoadsAhead = kPanels == 1 && !kPacked && Step<F>::kWords == 4 && F != WeightFormat::f32;
    const int own_row = min(first_tile * kRowTile + group_lane(), p.rows - 1);
    float ahead[kLoadsAhead ? Step<F>::kLaneColumns : 1];
    if constexpr (kLoadsAhead) load_activations<F>(ahead, p, own_row, warp);
    // The same for packed x: else each tile would wait for L2 in turn. For fp8 it would take the registers of a second
    // block.
    constexpr bool kReadsAhead = kPanels == 1 && kPacked && Step<F>::kWords == 4;
    // A last block of rows has fewer tiles, and need not wait for L2 to give it the others. With integers, the registers
    // are used up.
    constexpr bool kReadsAll = Step<F>::kInteger;
    const int own_tiles = (p.rows + kRowTile - 1) / kRowTile - first_tile;
    Activations<F> next_x[kReadsAhead ? kTiles : 1];
    if constexpr (kReadsAhead) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        if (warp < steps) next_x[tile] = packed.template read<F>(first_tile + tile, warp, steps);
      }
    }
    for (int first = warp; first < steps; first += kPrefetchDepth * kWarps) {
      // Unrolled, so that prefetched weights stay in the registers that they are loaded into.
#pragma unroll
      for (int i = 0; i < kPrefetchDepth; ++i) {
        const int step = first + i * kWarps;
        if (step >= steps) break;
        if constexpr (kIsHalfTile) {
          const Activations<F> first_half = shared_x.read_half(step, 0), second_half = shared_x.read_half(step, 1);
          const ColumnScales columns = shared_x.columns(step, lane_in_group() % 2);
#pragma unroll
          for (int panel = 0; panel < kPanels; ++panel) {
            multiply_half_tile(sums, panel, prefetched[i], first_half, second_half, columns);
          }
        }
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          Activations<F> x;
          ColumnScales columns = {};
          if constexpr (Step<F>::kInteger) {
            columns = kPacked ? packed.template columns<F>(first_tile + tile, step, steps)
                              : shared_x.columns(step, lane_in_group());
          }
          if constexpr (kReadsAhead) {
            x = next_x[tile];
            if (step + kWarps < steps) {
              next_x[tile] = packed.template read<F>(first_tile + tile, step + kWarps, steps);
            }
          } else if constexpr (kPacked) {
            if (kReadsAll || tile < own_tiles) x = packed.template read<F>(first_tile + tile, step, steps);
            else x = {};
          } else if constexpr (kShared) x = shared_x.read(step);
          else if constexpr (kLoadsAhead) {
            float v[Step<F>::kLaneColumns];
#pragma unroll
            for (int column = 0; column < Step<F>::kLaneColumns; ++column) v[column] = ahead[column];
            load_activations<F>(ahead, p, own_row, step + kWarps);
            x = round_activations<F>(squares, v, p, own_row, step);
          } else x = read_activations<F>(squares, p, own_row, step);
#pragma unroll
          for (int panel = 0; panel < kPanels; ++panel) multiply(sums, panel, tile, prefetched[i], x, columns);
        }
        const int next = step + kPrefetchDepth * kWarps;
        if (next < steps) load_weights<F, kPanels>(prefetched[i], weight, scales, next, units);
      }
    }

    const bool has_more = kShared && static_cast<int>(blockIdx.y + (turn + 1) * gridDim.y) * kPanels < num_panels;
    if (has_more) {  // the next weights arrive while sums are added
      take_panels(turn + 1);
      load_first_steps();
    } else {
      if (!kPacked && !p.next_first) p.next.prefetch(block, blocks);
      p.set_zeros(block, blocks);
    }

    if constexpr (F == WeightFormat::f32) {
#pragma unroll
      for (int i = 0; i < LaneSums::kCount; ++i) sums.v[i] = group_sum(sums.v[i]);
    }
    auto* exchanged = reinterpret_cast<float*>(dynamic_shared());
    auto* values = exchanged + kWarps / 2 * LaneSums::kCount * kWarp;
    float* norm_factors = values + kPanels * kPanel * BlockSums<kRows>::kStride;
    add_warps(sums, exchanged, values, warp, lane);
    if constexpr (kPacked) {
      if (threadIdx.x < kTiles * kRowTile) {
        norm_factors[threadIdx.x] = packed.norm_factors[first_tile * kRowTile + threadIdx.x];
      }
    } else if (turn == 0) {
      const float factor = norm_factor<F>(squares, squares_of_warps, p);
      if (warp == 0 && lane_in_group() == 0) norm_factors[group_lane()] = factor;
    }
    __syncthreads();
    const auto finished =
        block_sums<F, kRows>(p, values, norm_factors, shared_panels[kShared ? turn % 2 : 0], first_tile * kRowTile);
    finish<kPanels>(p, finished, first_tile * kRowTile, min(kRows, p.rows - first_tile * kRowTile), pair_distance > 0);
    if (!has_more) return;
    __syncthreads();
  }
}

}  // namespace

}  // namespace higgs_native::cuda
