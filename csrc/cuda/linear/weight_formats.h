// GEMM weights: the units of a panel that a warp takes per K-step, and how a lane loads them.
//
// A lane loads 16 bytes at a time: the words of four weight rows of one unit. This is the layout of the tensor cores'
// fragments: lane 4 * g + t holds rows 4 g .. 4 g + 3 of units t * kChunks + c of a step, and row g of x in the columns
// of those units. So weights need no shuffle before the tensor cores: only int4 is shifted and masked, and fp8 widened.
#pragma once

#include <type_traits>

#include "common/weight_format.h"
#include "cuda/device.h"

namespace higgs_native::cuda {

namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kRowTile = 8;  // rows of x per tensor-core instruction

// A K-step: the units of a panel that a warp multiplies in one turn of the mainloop, and how four lanes share them.
template <WeightFormat F>
struct Step {
  static constexpr bool kInteger = is_integer(F), kRowScales = has_row_scales(F);
  static constexpr int kChunks = F == WeightFormat::int8 ? 8 : 4;  // loads of 16 bytes per lane
  static constexpr int kUnits = 4 * kChunks;
  static constexpr int kColumns = kUnits * static_cast<int>(unit_columns(F));
  static constexpr int kLaneColumns = kColumns / 4;
  // Words of x per lane: a float, two numbers of 16 bits or four bytes each.
  static constexpr int kWords = kInteger || F == WeightFormat::fp8 ? 8 : 4;
};
static_assert(Step<WeightFormat::int8>::kColumns == kQuantGroup && Step<WeightFormat::int4>::kColumns == kQuantGroup);

// The 16-bit type that tensor cores multiply.
template <WeightFormat F>
using TensorCoreType = std::conditional_t<F == WeightFormat::f16, float16, bfloat16>;

// Lane 4 * g + t: g, the group of four lanes that share a row of x, and t, its index in the group.
__device__ __forceinline__ int group_lane() { return static_cast<int>(threadIdx.x) % kWarp / 4; }
__device__ __forceinline__ int lane_in_group() { return static_cast<int>(threadIdx.x) % 4; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

// A lane's weights of a step, and the scales of its weight rows 4 g .. 4 g + 3.
template <WeightFormat F, int kPanels>
struct Weights {
  uint4 words[kPanels][Step<F>::kChunks];
  uint2 scales[F == WeightFormat::int4 ? kPanels : 1];
};

// Loads the weights of K-step `step`. `panels` and `scales` point to the lane's first bytes in each panel. `units`: of a
// panel; units past the last are zeros.
template <WeightFormat F, int kPanels>
__device__ __forceinline__ void load_weights(
    Weights<F, kPanels>& to, const char* const (&panels)[kPanels], const uint16_t* const (&scales)[kPanels], int step,
    int units) {
  using S = Step<F>;
  const int first = step * S::kUnits + lane_in_group() * S::kChunks;
  const bool is_whole =
      (step + 1) * S::kUnits <= units;  // of the warp, so that most steps need no check of their units
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
    const char* from = panels[panel] + static_cast<int64_t>(first) * kUnitBytes;
    if (is_whole) {
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) to.words[panel][c] = load_streaming(from + c * kUnitBytes);
    } else {
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        to.words[panel][c] = first + c < units ? load_streaming(from + c * kUnitBytes) : make_uint4(0, 0, 0, 0);
      }
    }
    if constexpr (F == WeightFormat::int4) {
      to.scales[panel] = *reinterpret_cast<const uint2*>(scales[panel] + step * kPanel);
    }
  }
}

}  // namespace

}  // namespace higgs_native::cuda
