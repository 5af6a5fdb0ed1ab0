// GEMM mainloop for more than 64 rows of x and weights of 16 bits, in wide_gemm_kernel: a block takes 128 rows of x and
// 128 weight rows.
//
// Blocks of gemm_kernel take 64 of each, since registers hold the sums of eight warps that share the depth k; so they
// read x and weights from L2 twice as often, which limits many rows. Here the warps share out rows and weight rows. The
// K-steps that a warp of gemm_kernel takes are multiplied one behind the other, then those of the next warp, and their
// sums are added in the same order: the bits are the same.
#pragma once

#include "cuda/linear/mainloop.h"

namespace higgs_native::cuda {

namespace {

constexpr int kWidePanels = 4, kWideTiles = 16, kWideRows = kWideTiles * kRowTile;
constexpr int kWarpTiles = kWideTiles * kWidePanels / kWarps;  // a warp takes one panel

// A K-step in shared memory, in the order in which lanes read it: without conflicts between banks.
template <WeightFormat F>
struct WideStage {
  uint4 weights[kWidePanels][Step<F>::kChunks][kWarp];
  uint4 x[kWideTiles][kWarp];
};

constexpr int kWideStages = 4;  // K-steps that are copied ahead of the one in registers

template <WeightFormat F>
inline constexpr size_t kWideBytes =
    std::max(kWideStages * sizeof(WideStage<F>), kWidePanels * kPanel * BlockSums<kWideRows>::kStride * sizeof(float));

// Beside the static shared memory of a block, what every GPU has.
static_assert(kWideBytes<WeightFormat::bf16> <= (98 << 10) && kWideBytes<WeightFormat::f16> <= (98 << 10));

// The K-steps of a weight in the order of gemm_kernel's warps.
struct WideOrder {
  int warp = 0, step = 0;

  // Returns whether the next step is of another warp.
  __device__ __forceinline__ bool advance(int steps) {
    step += kWarps;
    if (step < steps) return false;
    step = ++warp;
    return true;
  }
};

// The parts of each K-step that a lane copies: 16 bytes of some panels and of some tiles.
template <WeightFormat F>
struct WideCopies {
  using S = Step<F>;
  static_assert(S::kWords == 4 && kWarps % S::kChunks == 0);
  static constexpr int kPanelsAtOnce = kWarps / S::kChunks;
  const char* panels[kWidePanels / kPanelsAtOnce];  // the first step's; null if there is no panel: zeros
  const uint4* tiles[kWideTiles / kWarps];          // null if there is no tile: zeros
  int first_unit, units;

  // `block`: of panels. `num_tiles`: that the block has, from `first_tile` on.
  __device__ __forceinline__ WideCopies(
      const Gemm& p, const PackedActivations& packed, int block, int pair_distance, int first_tile, int num_tiles,
      int steps)
      : first_unit(lane_in_group() * S::kChunks + warp_index() % S::kChunks), units(static_cast<int>(p.weight.units)) {
    const int warp = warp_index(), lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < kWidePanels / kPanelsAtOnce; ++i) {
      const int64_t panel = panel_of_block<kWidePanels>(block, i * kPanelsAtOnce + warp / S::kChunks, pair_distance);
      panels[i] = panel * kPanel < p.weight.n
                      ? p.weight.data + (panel * units + first_unit) * kUnitBytes + group_lane() * 16
                      : nullptr;
    }
#pragma unroll
    for (int i = 0; i < kWideTiles / kWarps; ++i) {
      const int tile = i * kWarps + warp;
      const int64_t at = static_cast<int64_t>(first_tile + tile) * steps * kWarp + lane;
      tiles[i] = tile < num_tiles ? reinterpret_cast<const uint4*>(packed.words) + at : nullptr;
    }
  }

  __device__ __forceinline__ void begin(WideStage<F>& to, int step) const {
    const int warp = warp_index(), lane = static_cast<int>(threadIdx.x) % kWarp;
    const bool has_units = step * S::kUnits + first_unit < units;
    uint4* weights = &to.weights[warp / S::kChunks][warp % S::kChunks][lane];
#pragma unroll
    for (int i = 0; i < kWidePanels / kPanelsAtOnce; ++i) {
      const bool wanted = panels[i] && has_units;
      copy_async(
          weights + i * kPanelsAtOnce * S::kChunks * kWarp,
          panels[i] + static_cast<int64_t>(step) * S::kUnits * kUnitBytes, wanted);
    }
#pragma unroll
    for (int i = 0; i < kWideTiles / kWarps; ++i) {
      copy_async(&to.x[i * kWarps + warp][lane], tiles[i] + static_cast<int64_t>(step) * kWarp, tiles[i] != nullptr);
    }
  }
};

template <WeightFormat F>
__device__ __forceinline__ void read_x(Activations<F>& to, const WideStage<F>& stage, int tile) {
  const uint4 four = stage.x[tile][threadIdx.x % kWarp];
  to.words[0] = four.x;
  to.words[1] = four.y;
  to.words[2] = four.z;
  to.words[3] = four.w;
}

// Multiplies a block's rows and weight rows. Rows of x are packed. See gemm_kernel for the arguments.
template <WeightFormat F>
__global__ void __launch_bounds__(kThreads)
    wide_gemm_kernel(Gemm p, PackedActivations packed, int steps, int pair_distance) {
  using S = Step<F>;
  using LaneSums = Sums<F, 1, kWarpTiles * kRowTile>;
  __shared__ int shared_panels[kWidePanels];
  __shared__ float norm_factors[kWideRows];
  const int warp = warp_index(), lane = static_cast<int>(threadIdx.x) % kWarp;
  if (threadIdx.x < kWidePanels) {
    shared_panels[threadIdx.x] =
        panel_of_block<kWidePanels>(static_cast<int>(blockIdx.y), static_cast<int>(threadIdx.x), pair_distance);
  }
  allow_next_launch();
  wait_for_earlier_launches();

  // Blocks share out the tiles evenly: a last one with few of them would keep its multiprocessor nearly as long.
  const int all_tiles = (p.rows + kRowTile - 1) / kRowTile, row_blocks = static_cast<int>(gridDim.x);
  const int tiles_of_block = (all_tiles + row_blocks - 1) / row_blocks;
  const int first_tile = static_cast<int>(blockIdx.x) * tiles_of_block, first_row = first_tile * kRowTile;
  const int tiles = max(0, min(tiles_of_block, all_tiles - first_tile));
  const int rows = min(tiles * kRowTile, p.rows - first_row);
  for (int row = static_cast<int>(threadIdx.x); row < rows; row += kThreads) {
    norm_factors[row] = packed.norm_factors[first_row + row];
  }
  auto* stages = reinterpret_cast<WideStage<F>*>(dynamic_shared());
  constexpr int kStages = kWideStages;
  const WideCopies<F> copies(p, packed, static_cast<int>(blockIdx.y), pair_distance, first_tile, tiles, steps);
  WideOrder ahead, order;
#pragma unroll
  for (int i = 0; i < kStages; ++i) {
    if (i < steps) {
      copies.begin(stages[i], ahead.step);
      ahead.advance(steps);
    }
    end_group_of_copies();
  }

  // A warp multiplies a panel with half of the tiles. Its registers take the next step while this one is multiplied.
  const int panel = warp % kWidePanels, warp_tile = warp / kWidePanels * kWarpTiles;
  Weights<F, 1> weights, next_weights;
  Activations<F> x[kWarpTiles];
  wait_for_groups_of_copies<kStages - 1>();
  __syncthreads();
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) weights.words[0][c] = stages[0].weights[panel][c][lane];
#pragma unroll
  for (int tile = 0; tile < kWarpTiles; ++tile) read_x(x[tile], stages[0], warp_tile + tile);
  LaneSums sums, total;
#pragma unroll
  for (int i = 0; i < LaneSums::kCount; ++i) sums.v[i] = total.v[i] = 0;
  for (int i = 0; i < steps; ++i) {
    wait_for_groups_of_copies<kStages - 2>();
    __syncthreads();  // all warps see the next step, and have read this one
    const WideStage<F>& next = stages[min(i + 1, steps - 1) % kStages];
    // Two tiles at a time, so that each hides the latency of the other's products. One may be missing, and is zeros.
    static_assert(kWarpTiles == 2 * S::kChunks);
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      next_weights.words[0][c] = next.weights[panel][c][lane];
      if (warp_tile + 2 * c >= tiles) continue;
#pragma unroll
      for (int tile = 2 * c; tile < 2 * c + 2; ++tile) {
        multiply(sums, 0, tile, weights, x[tile]);
        read_x(x[tile], next, warp_tile + tile);
      }
    }
    if (i + kStages < steps) {
      copies.begin(stages[i % kStages], ahead.step);
      ahead.advance(steps);
    }
    end_group_of_copies();
    weights = next_weights;
    if (order.advance(steps)) {
#pragma unroll
      for (int j = 0; j < LaneSums::kCount; ++j) {
        total.v[j] += sums.v[j];
        sums.v[j] = 0;
      }
    }
  }
  wait_for_copies();

  p.set_zeros(static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x), static_cast<int>(gridDim.y * gridDim.x));
  __syncthreads();  // all stages are read, and their memory takes the sums
  auto* values = reinterpret_cast<float*>(dynamic_shared());
  constexpr int kStride = BlockSums<kWideRows>::kStride;
  float* to = values + panel * static_cast<int>(kPanel) * kStride + warp_tile * kRowTile;
#pragma unroll
  for (int i = 0; i < LaneSums::kCount; ++i)
    to[index_of_sum<F, 1, kWarpTiles * kRowTile>(i, lane, kStride)] = total.v[i];
  __syncthreads();
  const auto finished = block_sums<F, kWideRows>(p, values, norm_factors, shared_panels, first_row);
  finish<kWidePanels>(p, finished, first_row, rows, pair_distance > 0);
}

}  // namespace

}  // namespace higgs_native::cuda
