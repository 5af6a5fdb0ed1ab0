// GEMM mainloop of wide_mainloop.h with products of warpgroups, for GPUs that have them, in warpgroup_gemm_kernel: the
// same order of sums, so the bits are the same.
//
// A warpgroup takes two of the block's four panels, half a panel a warp, and all its rows. Where blocks would be too
// few, several share out the depth k: in whole shares, the K-steps that a warp of gemm_kernel takes. They leave their
// sums in memory, and finish_shares_kernel adds them in the order of the shares.
//
// Shared memory is the limit: for a K-step of 128 rows 16 KB are written, weights are read once, and x by both
// warpgroups.
#pragma once

#include "cuda/linear/wide_mainloop.h"
#include "cuda/warpgroup.h"

namespace higgs_native::cuda {

namespace {

constexpr int kShares = kWarps;  // of the depth k

// Two K-steps of a share in shared memory; kTiles: of rows.
constexpr int kStageSteps = 2;

template <WeightFormat F, int kTiles>
struct WarpgroupStage {
  using S = Step<F>;
  // For each half of a panel, the words of two units of a lane: a fragment of a. At lane_slot().
  uint4 weights[kStageSteps][kWidePanels][2][S::kChunks / 2][kWarp];
  uint32_t x[kStageSteps][kTiles][S::kWords][kWarp];
};

// The place of lane 4 g + t: its reads, 16 bytes a lane, don't meet in a bank, and of the copies, 8 bytes a lane, two do.
__device__ __forceinline__ int lane_slot(int g, int t) { return 8 * t + (g ^ 2 * t); }

// Stages in shared memory, in 200 KB. Two are multiplied, the others are being copied.
template <WeightFormat F, int kTiles>
inline constexpr int kWarpgroupStages = (200 << 10) / sizeof(WarpgroupStage<F, kTiles>);

template <WeightFormat F, int kTiles>
inline constexpr size_t kWarpgroupBytes = std::max(
    kWarpgroupStages<F, kTiles> * sizeof(WarpgroupStage<F, kTiles>),
    kWidePanels * kPanel * BlockSums<kTiles * kRowTile>::kStride * sizeof(float));

// The parts of each K-step that a lane copies: 8 bytes of a unit for each panel, and 16 bytes of some tiles.
template <WeightFormat F, int kTiles>
struct WarpgroupCopies {
  using S = Step<F>;
  using Stage = WarpgroupStage<F, kTiles>;
  static constexpr int kPairs = S::kUnits / 2 / kWarps;  // pairs of units that a warp copies of a panel
  static constexpr int kPiecesOfTile = S::kWords / 4;
  static constexpr int kPieces = kTiles * kPiecesOfTile / kWarps;  // that a warp copies
  const char* panels[kWidePanels];  // the lane's first bytes; null if there is no panel: zeros
  const uint4* pieces[kPieces];     // null if there is no tile: zeros
  int first_unit, units;

  // `block`: of panels. `num_tiles`: that the block has, from `first_tile` on.
  __device__ __forceinline__ WarpgroupCopies(
      const Gemm& p, const PackedActivations& packed, int block, int pair_distance, int first_tile, int num_tiles,
      int steps)
      : first_unit(2 * warp_index() + static_cast<int>(threadIdx.x) % kWarp / 16),
        units(static_cast<int>(p.weight.units)) {
    const int warp = warp_index(), lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < kWidePanels; ++i) {
      const int64_t panel = panel_of_block<kWidePanels>(block, i, pair_distance);
      panels[i] = panel * kPanel < p.weight.n
                      ? p.weight.data + (panel * units + first_unit) * kUnitBytes + lane % 16 * 8
                      : nullptr;
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = i * kWarps + warp, tile = piece / kPiecesOfTile;
      const int64_t at =
          (static_cast<int64_t>(first_tile + tile) * steps * kPiecesOfTile + piece % kPiecesOfTile) * kWarp + lane;
      pieces[i] = tile < num_tiles ? reinterpret_cast<const uint4*>(packed.words) + at : nullptr;
    }
  }

  // Begin to copy K-steps `first` and the next one of its share, which may be missing: zeros.
  __device__ __forceinline__ void begin_weights(Stage& to, int first) const {
    const int warp = warp_index(), lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int of_stage = 0; of_stage < kStageSteps; ++of_stage) {
      const int step = first + of_stage * kShares;
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const int at = pair * kWarps + warp, t = at / (S::kChunks / 2), slot = lane_slot(lane % 16 / 2, t);
        const bool has_unit = step * S::kUnits + first_unit + 2 * kWarps * pair < units;
        const int64_t from = static_cast<int64_t>(step * S::kUnits + 2 * kWarps * pair) * kUnitBytes;
#pragma unroll
        for (int i = 0; i < kWidePanels; ++i) {
          auto* words = reinterpret_cast<uint2*>(&to.weights[of_stage][i][lane % 2][at % (S::kChunks / 2)][slot]);
          copy_async(words + lane / 16, panels[i] + from, panels[i] && has_unit);
        }
      }
    }
  }

  __device__ __forceinline__ void begin_x(Stage& to, int first, int steps) const {
    const int warp = warp_index(), lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int of_stage = 0; of_stage < kStageSteps; ++of_stage) {
      const int step = first + of_stage * kShares;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        copy_async(
            reinterpret_cast<uint4*>(to.x[of_stage]) + (i * kWarps + warp) * kWarp + lane,
            pieces[i] + static_cast<int64_t>(step) * kPiecesOfTile * kWarp, pieces[i] && step < steps);
      }
    }
  }
};

// The stages of a weight: the K-steps of a share in pairs, share by share.
struct StageOrder {
  int share, step = share;

  // Returns whether the next stage is of another share.
  __device__ __forceinline__ bool advance(int steps) {
    step += kStageSteps * kShares;
    if (step < steps) return false;
    step = ++share;
    return true;
  }

  __device__ __forceinline__ static int stages_of_share(int share, int steps) {
    constexpr int kStride = kStageSteps * kShares;
    return max(0, (steps - share + kStride - 1) / kStride);
  }
};

// Sums of the shares in memory: [shares, panels, tiles, halves of the panel, lanes].
struct ShareSums {
  float4* sums = nullptr;
  int panels = 0, tiles = 0;

  __device__ __forceinline__ float4& at(int share, int panel, int tile, int half) const {
    const int64_t fragment = (static_cast<int64_t>(share * panels + panel) * tiles + tile) * 2 + half;
    return sums[fragment * kWarp + threadIdx.x % kWarp];
  }
};

// A warp's weights of a K-step: half a panel, as fragments of a.
template <WeightFormat F>
struct WarpgroupWeights {
  static constexpr int kProducts = Step<F>::kWords / 2;
  uint32_t a[kProducts][4];

  __device__ __forceinline__ void read(const uint4 (&half_panel)[Step<F>::kChunks / 2][kWarp]) {
    const int slot = lane_slot(group_lane(), lane_in_group());
#pragma unroll
    for (int i = 0; i < Step<F>::kChunks / 2; ++i) {
      const uint4 four = half_panel[i][slot];
      if constexpr (F == WeightFormat::fp8) {
        const uint32_t words[2][2] = {{four.x, four.y}, {four.z, four.w}};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          a[2 * i + j / 2][j % 2] = widen_e4m3(words[j / 2][j % 2] << 8);
          a[2 * i + j / 2][2 + j % 2] = widen_e4m3(words[j / 2][j % 2]);
        }
      } else {
        a[i][0] = four.x;
        a[i][1] = four.y;
        a[i][2] = four.z;
        a[i][3] = four.w;
      }
    }
  }
};

// Multiplies a block's rows and weight rows; kTiles: of rows. Rows of x are packed for warpgroups. Blocks along z share
// out the depth; if there are several, `shares` takes their sums. See gemm_kernel for the other arguments.
template <WeightFormat F, int kTiles>
__global__ void __launch_bounds__(kThreads, 1)
    warpgroup_gemm_kernel(Gemm p, PackedActivations packed, int steps, int pair_distance, ShareSums shares) {
#if defined(HIGGS_NATIVE_WARPGROUPS)
  using Stage = WarpgroupStage<F, kTiles>;
  constexpr int kStages = kWarpgroupStages<F, kTiles>, kAhead = kStages - 2;
  static_assert(kAhead >= 1 && sizeof(Stage) % 128 == 0 && kWarpgroupBytes<F, kTiles> <= (226 << 10));
  constexpr int kRows = kTiles * kRowTile, kSums = kRows / 2;
  __shared__ int shared_panels[kWidePanels];
  __shared__ float norm_factors[kRows];
  const int warp = warp_index(), lane = static_cast<int>(threadIdx.x) % kWarp, panel = warp / 2, half = warp % 2;
  const int own_panel = panel_of_block<kWidePanels>(static_cast<int>(blockIdx.y), panel, pair_distance);
  if (lane == 0 && half == 0) shared_panels[panel] = own_panel;
  // Blocks share out the tiles evenly: a last one with few of them would keep its multiprocessor nearly as long.
  const int all_tiles = (p.rows + kRowTile - 1) / kRowTile, row_blocks = static_cast<int>(gridDim.x);
  const int tiles_of_block = (all_tiles + row_blocks - 1) / row_blocks;
  const int first_tile = static_cast<int>(blockIdx.x) * tiles_of_block, first_row = first_tile * kRowTile;
  const int tiles = max(0, min(tiles_of_block, all_tiles - first_tile));
  const int rows = min(tiles * kRowTile, p.rows - first_row);
  const int shares_of_block = kShares / static_cast<int>(gridDim.z);
  const int first_share = static_cast<int>(blockIdx.z) * shares_of_block;
  int own_stages = 0;
  for (int i = first_share; i < first_share + shares_of_block; ++i) own_stages += StageOrder::stages_of_share(i, steps);

  auto* stages = reinterpret_cast<Stage*>(dynamic_shared());
  const WarpgroupCopies<F, kTiles> copies(
      p, packed, static_cast<int>(blockIdx.y), pair_distance, first_tile, tiles, steps);
  StageOrder ahead = {first_share}, order = ahead;
#pragma unroll 1
  for (int i = 0; i < min(kAhead, own_stages); ++i) {
    copies.begin_weights(stages[i], ahead.step);
    ahead.advance(steps);
  }
  allow_next_launch();
  wait_for_earlier_launches();
  ahead = order;
#pragma unroll 1
  for (int i = 0; i < kAhead; ++i) {  // the first group has the weights of all
    if (i < own_stages) {
      copies.begin_x(stages[i], ahead.step, steps);
      ahead.advance(steps);
    }
    end_group_of_copies();
  }
  for (int row = static_cast<int>(threadIdx.x); row < rows; row += kThreads) {
    norm_factors[row] = packed.norm_factor(first_row + row);
  }
  const int blocks_of_slice = static_cast<int>(gridDim.x * gridDim.y);
  const int block =
      static_cast<int>(blockIdx.z) * blocks_of_slice + static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x);
  p.next.prefetch(block, blocks_of_slice * static_cast<int>(gridDim.z));

  float sums[kSums], total[kSums];
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = total[i] = 0;
  const SharedColumns columns(stages[0].x, kWarp * 4, sizeof(Stage::x[0][0]));
  uint32_t stage = 0;
  auto begin_step = [&](WarpgroupWeights<F>& weights, int step, bool adds) {
    begin_products(sums, weights.a);
#pragma unroll
    for (int i = 0; i < weights.kProducts; ++i) {
      const auto offset = static_cast<uint32_t>(step * sizeof(Stage::x[0]) + 2 * i * kWarp * 4);
      const SharedColumns b = columns + (stage * static_cast<uint32_t>(sizeof(Stage)) + offset);
      begin_product<TensorCoreType<F>, kRows>(sums, weights.a[i], b, adds || i > 0);
    }
    end_group_of_products();
  };
  WarpgroupWeights<F> first, second = {};
  wait_for_groups_of_copies<kAhead - 1>();
  show_to_products();
  __syncthreads();
  first.read(stages[0].weights[0][panel][half]);
  bool adds = false;  // to the sums of the stage before
#pragma unroll 1
  for (int i = 0; i < own_stages; ++i) {
    begin_step(first, 0, adds);
    if (i + kAhead < own_stages) {  // in place of the last stage but one, which all warps have multiplied
      Stage& free = stages[(stage + kAhead) % kStages];
      copies.begin_weights(free, ahead.step);
      copies.begin_x(free, ahead.step, steps);
      ahead.advance(steps);
    }
    end_group_of_copies();
    wait_for_groups_of_products<1>();  // the second step of the stage before
    hold(second.a);
    second.read(stages[stage].weights[1][panel][half]);
    begin_step(second, 1, true);
    if (i + 1 < own_stages) stage = (stage + 1) % kStages;
    wait_for_groups_of_copies<kAhead - 1>();
    show_to_products();
    __syncthreads();  // all warps see the next stage
    const int share = order.share;
    adds = !order.advance(steps);
    if (adds) {
      wait_for_groups_of_products<1>();  // the first step
    } else {
      wait_for_products(sums);
      hold(second.a);
      if (shares.sums) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          if (tile >= tiles || own_panel >= shares.panels) continue;
          shares.at(share, own_panel, first_tile + tile, half) =
              make_float4(sums[4 * tile], sums[4 * tile + 1], sums[4 * tile + 2], sums[4 * tile + 3]);
        }
      } else {
#pragma unroll
        for (int j = 0; j < kSums; ++j) total[j] += sums[j];
      }
    }
    hold(first.a);
    first.read(stages[stage].weights[0][panel][half]);
  }
  wait_for_products(sums);  // the compiler does not know that the last share has done it
  wait_for_copies();

  p.set_zeros(block, blocks_of_slice * static_cast<int>(gridDim.z));
  if (shares.sums) return;
  __syncthreads();  // all stages are read, and their memory takes the sums
  auto* values = reinterpret_cast<float*>(dynamic_shared());
  constexpr int kStride = BlockSums<kRows>::kStride;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    float* to = values + panel * static_cast<int>(kPanel) * kStride + tile * kRowTile;
#pragma unroll
    for (int i = 0; i < 4; ++i) to[index_of_sum<F, 1, kRowTile>(4 * half + i, lane, kStride)] = total[4 * tile + i];
  }
  __syncthreads();
  const auto finished = block_sums<F, kRows>(p, values, norm_factors, shared_panels, first_row);
  finish_or_pack<F, kWidePanels>(p, finished, first_row, rows, pair_distance > 0);
#endif
}

constexpr int kFinishedTiles = 4;  // of rows, of a block of finish_shares_kernel

// Adds the sums of all shares of four panels and four tiles, and applies the epilogue.
template <WeightFormat F>
__global__ void __launch_bounds__(kThreads)
    finish_shares_kernel(Gemm p, PackedActivations packed, ShareSums shares, int pair_distance) {
  constexpr int kRows = kFinishedTiles * kRowTile, kOwnTiles = kFinishedTiles * kWidePanels / kWarps;
  constexpr int kStride = BlockSums<kRows>::kStride;
  __shared__ int shared_panels[kWidePanels];
  __shared__ float norm_factors[kRows];
  __shared__ float values[kWidePanels * kPanel * kStride];
  const int warp = warp_index(), lane = static_cast<int>(threadIdx.x) % kWarp;
  const int panel = warp % kWidePanels, first_own_tile = warp / kWidePanels * kOwnTiles;
  const int own_panel = panel_of_block<kWidePanels>(static_cast<int>(blockIdx.y), panel, pair_distance);
  const int first_tile = static_cast<int>(blockIdx.x) * kFinishedTiles, first_row = first_tile * kRowTile;
  const int rows = min(kRows, p.rows - first_row);
  if (lane == 0 && warp < kWidePanels) shared_panels[panel] = own_panel;
  allow_next_launch();
  wait_for_earlier_launches();
  const int row = static_cast<int>(threadIdx.x);
  if (row < rows) norm_factors[row] = packed.norm_factor(first_row + row);
#pragma unroll
  for (int tile = 0; tile < kOwnTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = first_tile + first_own_tile + tile;
      if (at >= shares.tiles || own_panel >= shares.panels) continue;
      float4 of_shares[kShares];
#pragma unroll
      for (int share = 0; share < kShares; ++share) of_shares[share] = shares.at(share, own_panel, at, half);
      float four[4] = {};
#pragma unroll
      for (int share = 0; share < kShares; ++share) {
        four[0] += of_shares[share].x;
        four[1] += of_shares[share].y;
        four[2] += of_shares[share].z;
        four[3] += of_shares[share].w;
      }
      float* to = values + panel * static_cast<int>(kPanel) * kStride + (first_own_tile + tile) * kRowTile;
#pragma unroll
      for (int i = 0; i < 4; ++i) to[index_of_sum<F, 1, kRowTile>(half * 4 + i, lane, kStride)] = four[i];
    }
  }
  __syncthreads();
  const auto finished = block_sums<F, kRows>(p, values, norm_factors, shared_panels, first_row);
  finish<kWidePanels>(p, finished, first_row, rows, pair_distance > 0);
}

}  // namespace

}  // namespace higgs_native::cuda
