// Attention of a warp over its positions of a tile, for the query heads that share a KV head.
//
// A tile has kTile positions: 1, 2 or 4 pages of the cache, the last tile fewer. A warp takes kWarpPositions of them,
// which lie in one page, and keeps its softmax state and its sums until the split ends.
#pragma once

#include "common/softmax_state.h"
#include "cuda/device.h"

namespace higgs_native::cuda {

namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kWarpPositions = 16, kTile = kWarps * kWarpPositions;
constexpr int kMaxGroup = 4, kMaxHeadDim = 128;

// The softmax state before the first position.
constexpr SoftmaxState kNothing = {-kMaxFloat, 0};

// A warp's results of a split: per query head the softmax state, and the sum of values weighted with exp(score -
// maximum). Rows are padded, so that stores of several heads fall into different banks.
template <int kGroup>
struct WarpSums {
  SoftmaxState states[kGroup];
  alignas(16) float sums[kGroup][kMaxHeadDim + 8];
};

// On tensor cores, for aligned rows of kDims 16-bit numbers. Products have eight columns: for each query head its numbers
// rounded to 16 bits, and what rounding left of them; likewise for its weights. In the notation of cuda/device.h, lane
// 4 g + t has
// - of the query: column g, which is part g % 2 of head g / 2;
// - of the keys: positions g and g + 8, and of every 32 dimensions the 8 from 8 t on. The two products of these take
//   dimensions in that order, so that words are used as they are loaded;
// - of the scores: head t at positions g and g + 8;
// - of the values: positions t, t + 4, t + 8, t + 12, and of every 64 dimensions the 8 from 8 g on. Each word and that of
//   8 positions later become two rows of a product;
// - of the sums: head t in the dimensions of its values.
// Positions from `count` on are read as the last one, and weigh nothing.
template <typename T, int kGroup, int kDims>
struct TensorTile {
  static constexpr int kLaneQuads = kDims / 32;

  float4 query_columns[kDims / 16];  // until round_query()
  uint32_t query[kDims / 8];
  uint4 keys[kDims / 32][2], values[kDims / 64][4];
  float sums[kDims / 64][4][4];
  float weights[2];
  float maximum, total;

  // `from`: the rows of the query heads. round_query() must follow, once other loads are in flight.
  __device__ __forceinline__ void load_query(const float* from, int group, int, int lane) {
    const int head = lane / 8, first = lane % 4 * 8;
#pragma unroll
    for (int i = 0; i < kDims / 16; ++i) {
      const int dimension = i / 2 * 32 + first + i % 2 * 4;
      query_columns[i] =
          head < group ? *reinterpret_cast<const float4*>(from + head * kDims + dimension) : make_float4(0, 0, 0, 0);
    }
  }

  __device__ __forceinline__ void round_query(float scale, int lane) {
    const bool is_rest = lane / 4 % 2 != 0;
#pragma unroll
    for (int i = 0; i < kDims / 16; ++i) {
      const float4 v = query_columns[i];
      query[2 * i] = part_of(v.x * scale, v.y * scale, is_rest);
      query[2 * i + 1] = part_of(v.z * scale, v.w * scale, is_rest);
    }
  }

  // `rows`: of the warp's positions, of which there are `count`.
  __device__ __forceinline__ void load_keys(const T* rows, int count, int lane) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const T* row = rows + min(lane / 4 + 8 * r, count - 1) * kDims + lane % 4 * 8;
#pragma unroll
      for (int i = 0; i < kDims / 32; ++i) keys[i][r] = *reinterpret_cast<const uint4*>(row + i * 32);
    }
  }

  __device__ __forceinline__ void load_values(const T* rows, int count, int lane) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const T* row = rows + min(lane % 4 + 4 * r, count - 1) * kDims + lane / 4 * 8;
#pragma unroll
      for (int i = 0; i < kDims / 64; ++i) values[i][r] = *reinterpret_cast<const uint4*>(row + i * 64);
    }
  }

  __device__ __forceinline__ void begin_split() {
    maximum = kNothing.maximum;
    total = kNothing.total;
#pragma unroll
    for (int i = 0; i < kDims / 64 * 16; ++i) sums[i / 16][i / 4 % 4][i % 4] = 0;
  }

  // The weights exp(score - maximum) of the positions. Sums so far are rescaled to the new maximum.
  __device__ __forceinline__ void score(int count, int, int lane) {
    float products[2][4] = {};
#pragma unroll
    for (int i = 0; i < kDims / 32; ++i) {
      const uint4 first = keys[i][0], second = keys[i][1];
      multiply_pairs<T>(products[0], {first.x, second.x, first.y, second.y}, {query[4 * i], query[4 * i + 1]});
      multiply_pairs<T>(products[1], {first.z, second.z, first.w, second.w}, {query[4 * i + 2], query[4 * i + 3]});
    }
    float next_maximum = maximum;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float rounded = products[0][2 * r] + products[1][2 * r];
      const float rest = products[0][2 * r + 1] + products[1][2 * r + 1];
      weights[r] = lane / 4 + 8 * r < count ? rounded + rest : -INFINITY;
      next_maximum = fmaxf(next_maximum, weights[r]);
    }
#pragma unroll
    for (int with = 4; with < kWarp; with *= 2) {
      next_maximum = fmaxf(next_maximum, __shfl_xor_sync(kAllLanes, next_maximum, with));
    }
    const float keep = expf(maximum - next_maximum);
    maximum = next_maximum;
#pragma unroll
    for (int r = 0; r < 2; ++r) weights[r] = expf(weights[r] - maximum);
    // The first positions of a split have no sums before them, and most others leave the maximum as it is.
    const bool rescales = __any_sync(kAllLanes, total != 0 && keep != 1);
    total = fmaf(total, keep, weights[0]) + weights[1];
    if (!rescales) return;
#pragma unroll
    for (int i = 0; i < kDims / 64 * 16; ++i) sums[i / 16][i / 4 % 4][i % 4] *= keep;
  }

  __device__ __forceinline__ void weigh(int, int, int lane) {
    const uint32_t rounded = part_of(weights[0], weights[1], false), rest = part_of(weights[0], weights[1], true);
    uint32_t columns[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int from = lane % 4 * 4 + lane / 8 + 16 * r;
      const uint32_t of_rounded = __shfl_sync(kAllLanes, rounded, from), of_rest = __shfl_sync(kAllLanes, rest, from);
      columns[r] = lane / 4 % 2 != 0 ? of_rest : of_rounded;
    }
#pragma unroll
    for (int i = 0; i < kDims / 64; ++i) {
      const auto& rows = values[i];
      weigh_word(sums[i][0], rows[0].x, rows[2].x, rows[1].x, rows[3].x, columns);
      weigh_word(sums[i][1], rows[0].y, rows[2].y, rows[1].y, rows[3].y, columns);
      weigh_word(sums[i][2], rows[0].z, rows[2].z, rows[1].z, rows[3].z, columns);
      weigh_word(sums[i][3], rows[0].w, rows[2].w, rows[1].w, rows[3].w, columns);
    }
  }

  // Completes the total. Then lane_sums() are those of head t, four dimensions from lane_dimension() on.
  __device__ __forceinline__ void end_split() {
#pragma unroll
    for (int with = 4; with < kWarp; with *= 2) total += __shfl_xor_sync(kAllLanes, total, with);
  }

  __device__ __forceinline__ float4 lane_sums(int quad) const {
    const auto &a = sums[quad / 2][quad % 2 * 2], &b = sums[quad / 2][quad % 2 * 2 + 1];
    return make_float4(a[0] + a[1], a[2] + a[3], b[0] + b[1], b[2] + b[3]);
  }

  static __device__ __forceinline__ int lane_dimension(int quad, int lane) {
    return quad / 2 * 64 + lane / 4 * 8 + quad % 2 * 4;
  }

  __device__ __forceinline__ void end_split(WarpSums<kGroup>& to, int lane) {
    end_split();
    const int head = lane % 4;
    if (head >= kGroup) return;
    if (lane < 4) to.states[head] = {maximum, total};
#pragma unroll
    for (int quad = 0; quad < kLaneQuads; ++quad) {
      *reinterpret_cast<float4*>(&to.sums[head][lane_dimension(quad, lane)]) = lane_sums(quad);
    }
  }

 private:
  // A pair rounded to 16 bits, or what rounding leaves of it.
  static __device__ __forceinline__ uint32_t part_of(float first, float second, bool is_rest) {
    const uint32_t rounded = pack<T>(first, second);
    const float2 wide = unpack<T>(rounded);
    const uint32_t rest = pack<T>(first - wide.x, second - wide.y);
    return is_rest ? rest : rounded;
  }

  // Adds two dimensions' values, in words of four positions, times the weights.
  static __device__ __forceinline__ void weigh_word(
      float (&sums)[4], uint32_t first, uint32_t first_later, uint32_t second, uint32_t second_later,
      const uint32_t (&columns)[2]) {
    multiply_pairs<T>(
        sums,
        {lower_halves(first, first_later), upper_halves(first, first_later), lower_halves(second, second_later),
         upper_halves(second, second_later)},
        columns);
  }
};

// The same in float32, for caches of any numbers. A lane has 4 dimensions of the query, the keys, values and sums, and
// the weights of one position.
template <typename T, int kGroup>
struct PlainTile {
  static constexpr int kLaneDims = kMaxHeadDim / kWarp;

  float query[kGroup][kLaneDims], sums[kGroup][kLaneDims];
  float weights[kGroup];
  float maximum[kGroup], total[kGroup];
  const T *keys, *values;

  __device__ __forceinline__ void load_query(const float* from, int group, int head_dim, int lane) {
#pragma unroll
    for (int g = 0; g < kGroup; ++g) load_dims(query[g], from + g * head_dim, g < group ? head_dim : 0, lane);
  }

  __device__ __forceinline__ void round_query(float scale, int) {
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) query[g][i] *= scale;
    }
  }

  __device__ __forceinline__ void load_keys(const T* rows, int, int) { keys = rows; }

  __device__ __forceinline__ void load_values(const T* rows, int, int) { values = rows; }

  __device__ __forceinline__ void begin_split() {
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      maximum[g] = kNothing.maximum;
      total[g] = kNothing.total;
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) sums[g][i] = 0;
    }
  }

  __device__ __forceinline__ void score(int count, int head_dim, int lane) {
#pragma unroll
    for (int g = 0; g < kGroup; ++g) weights[g] = -INFINITY;
    for (int position = 0; position < count; ++position) {
      float key[kLaneDims];
      load_dims(key, keys + position * head_dim, head_dim, lane);
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        float score = 0;
#pragma unroll
        for (int i = 0; i < kLaneDims; ++i) score = fmaf(query[g][i], key[i], score);
        score = warp_sum(score);
        if (lane == position) weights[g] = score;
      }
    }
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      const float next_maximum = fmaxf(maximum[g], warp_max(weights[g])), keep = expf(maximum[g] - next_maximum);
      maximum[g] = next_maximum;
      weights[g] = expf(weights[g] - next_maximum);
      total[g] = fmaf(total[g], keep, warp_sum(weights[g]));
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) sums[g][i] *= keep;
    }
  }

  __device__ __forceinline__ void weigh(int count, int head_dim, int lane) {
    for (int position = 0; position < count; ++position) {
      float value[kLaneDims];
      load_dims(value, values + position * head_dim, head_dim, lane);
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        const float weight = __shfl_sync(kAllLanes, weights[g], position);
#pragma unroll
        for (int i = 0; i < kLaneDims; ++i) sums[g][i] = fmaf(weight, value[i], sums[g][i]);
      }
    }
  }

  __device__ __forceinline__ void end_split(WarpSums<kGroup>& to, int lane) {
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      if (lane == 0) to.states[g] = {maximum[g], total[g]};
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) to.sums[g][lane * kLaneDims + i] = sums[g][i];
    }
  }

 private:
  // The lane's dimensions of a row as floats; zeros from head_dim on.
  template <typename Number>
  static __device__ __forceinline__ void load_dims(float (&v)[kLaneDims], const Number* row, int head_dim, int lane) {
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) {
      const int dimension = lane * kLaneDims + i;
      v[i] = dimension < head_dim ? to_float(row[dimension]) : 0.f;
    }
  }
};

}  // namespace

}  // namespace higgs_native::cuda
