// Products of a K-step: a panel of weights times a tile of rows of x, or half a tile, on the tensor cores, added to the sums
// of a lane. float32 weights are multiplied by the other units.
#pragma once

#include "cuda/linear/activations.h"
#include "cuda/linear/weight_formats.h"

namespace higgs_native::cuda {

namespace {

// Up to half a tile of rows of x, with integer weights. A fragment of 16 weight rows takes them from two loads, which the
// compiler gathers by a move per word. Instead the words of one load are a fragment, whose two halves in k are weight
// rows 4 g, 4 g + 1 and 4 g + 2, 4 g + 3; and x stands twice in the other one: columns 0 .. 3 multiply the first half
// alone, columns 4 .. 7 the second. Sums of integers are exact, so the bits are those of a tile.
constexpr int kHalfTile = kRowTile / 2;

// Sums of a lane: [panel][tile of 16 weight rows][tile of 8 rows of x][fragment]. For float32 weights [panel][weight
// row 4 g + i][row of x], over the lane's columns alone. For half a tile [panel][fragment].
template <WeightFormat F, int kPanels, int kRows>
struct Sums {
  static constexpr int kOfPanel = F == WeightFormat::f32 ? 4 * kRowTile : kRows;
  static constexpr int kCount = kPanels * kOfPanel;
  float v[kCount];
};

// Adds the integers of a group of columns, times the scales of x and, for 4-bit weights, of the weight row.
template <WeightFormat F>
__device__ __forceinline__ void add_scaled(
    float& to, int32_t integer, const ColumnScales& x, int column, float weight_scale) {
  if constexpr (F == WeightFormat::int4) {
    to = fmaf(static_cast<float>(integer - x.zero_corrections[column]) * x.scales[column], weight_scale, to);
  } else {
    to = fmaf(static_cast<float>(integer), x.scales[column], to);
  }
}

// The bits of 4-bit weights that are multiplied where they are: the sums of the high halves are 16 times as large.
constexpr uint32_t kLow = 0x0f0f0f0fu, kHigh = ~kLow;

// Multiplies panel `panel` and up to half a tile of x in one step, and adds the results to the sums. `first`: x in columns
// 0 .. 3 and zeros in the others; `second`: in columns 4 .. 7.
template <WeightFormat F, int kPanels>
__device__ __forceinline__ void multiply_half_tile(
    Sums<F, kPanels, kHalfTile>& sums, int panel, const Weights<F, kPanels>& weights, const Activations<F>& first,
    const Activations<F>& second, const ColumnScales& columns) {
  using S = Step<F>;
  // Each in two parts, since a product waits for the one before that has its sums.
  int32_t integers[2][4] = {}, of_high[2][4] = {};
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
    const uint4 w = weights.words[panel][c];
    if constexpr (F == WeightFormat::int8) {
      const uint32_t b[2] = {first.words[c], second.words[c]};
      multiply_bytes<true>(integers[c % 2], {w.x, w.y, w.z, w.w}, b);
    } else {
      const uint32_t low[2] = {first.words[2 * c], second.words[2 * c]};
      multiply_bytes<false>(integers[c % 2], {w.x & kLow, w.y & kLow, w.z & kLow, w.w & kLow}, low);
      const uint32_t high[2] = {first.words[2 * c + 1], second.words[2 * c + 1]};
      multiply_bytes<false>(of_high[c % 2], {w.x & kHigh, w.y & kHigh, w.z & kHigh, w.w & kHigh}, high);
    }
  }
  float2 weight_scales = {1, 1};
  if constexpr (F == WeightFormat::int4) {
    const uint2 halves = weights.scales[panel];
    weight_scales = unpack<float16>(lane_in_group() < 2 ? halves.x : halves.y);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    int32_t integer = integers[0][i] + integers[1][i];
    if constexpr (F == WeightFormat::int4) integer += (of_high[0][i] + of_high[1][i]) >> 4;
    add_scaled<F>(sums.v[4 * panel + i], integer, columns, i % 2, i < 2 ? weight_scales.x : weight_scales.y);
  }
}

// Multiplies panel `panel` and tile `tile` of x in one step, and adds the results to the sums. `columns`: of integers.
template <WeightFormat F, int kPanels, int kRows>
__device__ __forceinline__ void multiply(
    Sums<F, kPanels, kRows>& sums, int panel, int tile, const Weights<F, kPanels>& weights, const Activations<F>& x,
    const ColumnScales& columns = {}) {
  using S = Step<F>;
  constexpr int kTiles = kRows / kRowTile;
  const uint4(&w)[S::kChunks] = weights.words[panel];
  if constexpr (F == WeightFormat::f32) {
    float* to = sums.v + panel * 4 * kRowTile;
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      const float four[4] = {
          bits_as_float(w[c].x), bits_as_float(w[c].y), bits_as_float(w[c].z), bits_as_float(w[c].w)};
#pragma unroll
      for (int row = 0; row < kRowTile; ++row) {
        const float value = bits_as_float(__shfl_sync(kAllLanes, x.words[c], row * 4 + lane_in_group()));
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i * kRowTile + row] += four[i] * value;
      }
    }
  } else if constexpr (F == WeightFormat::bf16 || F == WeightFormat::f16) {
    using Number = TensorCoreType<F>;
    float (*to)[4] = reinterpret_cast<float (*)[4]>(sums.v + panel * kRows);
#pragma unroll
    for (int c = 0; c < S::kChunks; c += 2) {
      const uint32_t b[2] = {x.words[c], x.words[c + 1]};
      multiply_pairs<Number>(to[tile], {w[c].x, w[c].y, w[c + 1].x, w[c + 1].y}, b);
      multiply_pairs<Number>(to[kTiles + tile], {w[c].z, w[c].w, w[c + 1].z, w[c + 1].w}, b);
    }
  } else if constexpr (F == WeightFormat::fp8) {
    // Widened at each use: the compiler hoists this out of the loop over tiles, and fewer registers are live than if
    // the whole step were widened first.
    float (*to)[4] = reinterpret_cast<float (*)[4]>(sums.v + panel * kRows);
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      const uint32_t b[2] = {x.words[2 * c], x.words[2 * c + 1]};
      multiply_pairs<bfloat16>(
          to[tile], {widen_e4m3(w[c].x << 8), widen_e4m3(w[c].y << 8), widen_e4m3(w[c].x), widen_e4m3(w[c].y)}, b);
      multiply_pairs<bfloat16>(
          to[kTiles + tile], {widen_e4m3(w[c].z << 8), widen_e4m3(w[c].w << 8), widen_e4m3(w[c].z), widen_e4m3(w[c].w)},
          b);
    }
  } else {
    int32_t integers[2][4] = {};
    if constexpr (F == WeightFormat::int8) {
#pragma unroll
      for (int c = 0; c < S::kChunks; c += 2) {
        const uint32_t b[2] = {x.words[c], x.words[c + 1]};
        multiply_bytes<true>(integers[0], {w[c].x, w[c].y, w[c + 1].x, w[c + 1].y}, b);
        multiply_bytes<true>(integers[1], {w[c].z, w[c].w, w[c + 1].z, w[c + 1].w}, b);
      }
    } else {
      int32_t of_high[2][4] = {};
#pragma unroll
      for (int c = 0; c < S::kChunks; c += 2) {
        const uint4 first = w[c], second = w[c + 1];
        const uint32_t low[2] = {x.words[2 * c], x.words[2 * c + 2]};
        multiply_bytes<false>(integers[0], {first.x & kLow, first.y & kLow, second.x & kLow, second.y & kLow}, low);
        multiply_bytes<false>(integers[1], {first.z & kLow, first.w & kLow, second.z & kLow, second.w & kLow}, low);
        const uint32_t high[2] = {x.words[2 * c + 1], x.words[2 * c + 3]};
        multiply_bytes<false>(of_high[0], {first.x & kHigh, first.y & kHigh, second.x & kHigh, second.y & kHigh}, high);
        multiply_bytes<false>(of_high[1], {first.z & kHigh, first.w & kHigh, second.z & kHigh, second.w & kHigh}, high);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        integers[0][i] += of_high[0][i] >> 4;
        integers[1][i] += of_high[1][i] >> 4;
      }
    }
    float weight_scales[4] = {1, 1, 1, 1};
    if constexpr (F == WeightFormat::int4) {
      const uint2 halves = weights.scales[panel];
      const float2 first = unpack<float16>(halves.x), second = unpack<float16>(halves.y);
      weight_scales[0] = first.x;
      weight_scales[1] = first.y;
      weight_scales[2] = second.x;
      weight_scales[3] = second.y;
    }
    float* to = sums.v + panel * kRows;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        add_scaled<F>(
            to[(half * kTiles + tile) * 4 + i], integers[half][i], columns, i % 2, weight_scales[2 * half + i / 2]);
      }
    }
  }
}

}  // namespace

}  // namespace higgs_native::cuda
