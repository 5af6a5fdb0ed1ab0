// Attention over one tile of cache positions: scores, their softmax, and the weighted sum of the values.
//
// A tile has kTile positions: 1, 2 or 4 pages of the cache, the last tile fewer. Half a warp takes one position at a
// time, a lane kLaneDims of its dimensions.
#pragma once

#include "common/softmax_state.h"
#include "cuda/device.h"

namespace higgs_native::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp, kHalves = kThreads / 16;  // half warps
constexpr int kTile = 64, kPositions = kTile / kHalves;                            // positions per half warp and tile
constexpr int kLaneDims = 8;                                                       // dimensions per lane
constexpr int kMaxGroup = 4, kMaxHeadDim = 16 * kLaneDims;

// 8 dimensions from `dimension` on, as floats; zeros from head_dim on.
template <typename T>
__device__ __forceinline__ void load_dims(float (&v)[kLaneDims], const T* row, int dimension, int head_dim) {
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) v[i] = dimension + i < head_dim ? to_float(row[dimension + i]) : 0.f;
}

template <typename T>
__device__ __forceinline__ void widen(float (&v)[kLaneDims], const uint4& words) {
  const uint32_t all[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack<T>(all[i]);
    v[2 * i] = pair.x;
    v[2 * i + 1] = pair.y;
  }
}

// A lane's keys or values of a tile, by their offsets in the cache: positions half + j * kHalves for j < kPositions.
struct Tile {
  const int64_t* rows;  // [kPositions], shared: where position j * kHalves lies; the next kHalves - 1 follow it
  int half, count;      // positions from `count` on are not in the tile
  int dimension, head_dim;

  __device__ __forceinline__ bool has(int j) const { return half + j * kHalves < count; }
  __device__ __forceinline__ int64_t at(int j) const { return rows[j] + half * head_dim; }
};

// The lane's dimensions of the keys or values of a half warp's positions in a tile. kVectorized: rows of 16-bit numbers
// that consist of aligned 16 bytes; they are not widened until they are used, so that all loads are in flight at once.
template <typename T, bool kVectorized>
struct TileRows {
  uint4 words[kVectorized ? kPositions : 1];

  __device__ __forceinline__ void load(const T* cache, const Tile& tile) {
    if constexpr (kVectorized) {
#pragma unroll
      for (int j = 0; j < kPositions; ++j) {
        words[j] = tile.has(j) && tile.dimension < tile.head_dim
                       ? *reinterpret_cast<const uint4*>(cache + tile.at(j) + tile.dimension)
                       : make_uint4(0, 0, 0, 0);
      }
    }
  }

  __device__ __forceinline__ void get(float (&v)[kLaneDims], int j, const T* cache, const Tile& tile) const {
    if constexpr (kVectorized) {
      widen<T>(v, words[j]);
    } else {
      load_dims(v, cache + (tile.has(j) ? tile.at(j) : 0), tile.dimension, tile.has(j) ? tile.head_dim : 0);
    }
  }
};

// The half warp's scores of a tile, to shared memory. Lanes add their parts of a score pairwise: at first each lane of a
// pair takes half of the positions, so that the additions of all positions take little more than those of one.
template <int kGroup, typename T, bool kVectorized>
__device__ __forceinline__ void score_tile(
    float (&scores)[kGroup][kTile], const float (&query)[kGroup][kMaxHeadDim], const TileRows<T, kVectorized>& key_rows,
    const T* keys, const Tile& tile, int lane16) {
  static_assert(kPositions == 4);
  float key[kPositions][kLaneDims];
#pragma unroll
  for (int j = 0; j < kPositions; ++j) key_rows.get(key[j], j, keys, tile);
  const bool takes_last_two = (lane16 & 8) != 0, takes_second = (lane16 & 4) != 0;
#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
    float parts[kPositions] = {};
#pragma unroll
    for (int i = 0; i < kLaneDims; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(&query[g][lane16 * kLaneDims + i]);
#pragma unroll
      for (int j = 0; j < kPositions; ++j) {
        parts[j] = fmaf(four.x, key[j][i], parts[j]);
        parts[j] = fmaf(four.y, key[j][i + 1], parts[j]);
        parts[j] = fmaf(four.z, key[j][i + 2], parts[j]);
        parts[j] = fmaf(four.w, key[j][i + 3], parts[j]);
      }
    }
    float two[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float given = takes_last_two ? parts[j] : parts[j + 2];
      two[j] = (takes_last_two ? parts[j + 2] : parts[j]) + __shfl_xor_sync(kAllLanes, given, 8);
    }
    const float given = takes_second ? two[0] : two[1];
    float score = (takes_second ? two[1] : two[0]) + __shfl_xor_sync(kAllLanes, given, 4);
    score += __shfl_xor_sync(kAllLanes, score, 2);
    score += __shfl_xor_sync(kAllLanes, score, 1);
    if (lane16 % 4 == 0) scores[g][tile.half + lane16 / 4 * kHalves] = score;
  }
}

// Replaces the warp's row of scores by exp(score - maximum), and adds the tile to the softmax state in `maximum` and
// `total`. Returns the factor of earlier sums. (References to scalars and indices from the caller keep the registers of
// one large function.)
__device__ __forceinline__ float softmax_tile(
    float (&scores)[kTile], float& maximum, float& total, int lane, int count) {
  float lane_scores[kTile / kWarp];
  float next_maximum = maximum;
#pragma unroll
  for (int i = 0; i < kTile / kWarp; ++i) {
    const int position = lane + i * kWarp;
    lane_scores[i] = position < count ? scores[position] : -INFINITY;
    next_maximum = fmaxf(next_maximum, lane_scores[i]);
  }
  next_maximum = warp_max(next_maximum);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kTile / kWarp; ++i) {
    const float weight = expf(lane_scores[i] - next_maximum);
    scores[lane + i * kWarp] = weight;
    sum += weight;
  }
  const float keep = expf(maximum - next_maximum);
  total = fmaf(total, keep, warp_sum(sum));
  maximum = next_maximum;
  return keep;
}

// Adds the tile's weighted values to the half warp's sums.
template <int kGroup, typename T, bool kVectorized>
__device__ __forceinline__ void weigh_tile(
    float (&sums)[kGroup][kLaneDims], const float (&scores)[kGroup][kTile], const float (&keep)[kGroup],
    const TileRows<T, kVectorized>& value_rows, const T* values, const Tile& tile) {
#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) sums[g][i] *= keep[g];
  }
#pragma unroll
  for (int j = 0; j < kPositions; ++j) {
    float value[kLaneDims];
    value_rows.get(value, j, values, tile);
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      const float weight = scores[g][tile.half + j * kHalves];
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) sums[g][i] = fmaf(weight, value[i], sums[g][i]);
    }
  }
}

}  // namespace

}  // namespace higgs_native::cuda
