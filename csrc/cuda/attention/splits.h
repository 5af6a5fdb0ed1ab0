// Shared parts of the attention kernels: their arguments, the splits of a sequence, and the sums of splits.
#pragma once

#include "cuda/attention/tile.h"
#include "cuda/decoder.h"

namespace higgs_native::cuda {

namespace {

constexpr int kMaxSplits = kWarp;  // a lane of a warp merges one
constexpr int kQuads = kMaxHeadDim / 4;

struct AttentionArguments {
  float* out;          // [rows, heads * group * head_dim]
  const float* query;  // likewise
  const void *keys, *values;
  const int32_t* page_table;               // [slots, max_pages]
  const int32_t *slots, *cache_positions;  // [rows]
  float4* sums;                            // [rows, heads, parts, splits, kGroup, kQuads]: partial results
  float2* states;                          // [rows, heads, parts, splits, kGroup]: maximum and total of each
  int32_t* split_counters;                 // [rows, heads, parts], zeros
  int64_t max_pages, page_stride;          // page_stride: numbers between two pages
  int64_t slots_of_table;
  int page_shift;  // a page has 1 << page_shift positions
  int rows, heads, group, head_dim, splits;
  int parts;  // blocks that share a group larger than kGroup
  float scale;
  bool is_first;  // whether this is the first launch of the operator
  AttentionPrefetch prefetch;

  // The first column of an item's heads in `query` and `out`. Items are counted through rows, heads and parts.
  __device__ __forceinline__ int64_t first_column(int item, int heads_of_part) const {
    return (static_cast<int64_t>(item / parts) * group + item % parts * heads_of_part) * head_dim;
  }

  int64_t prefetched_bytes() const { return prefetch.o.bytes() + prefetch.gate_up.bytes(); }
};

// The splits of a sequence.
struct Splits {
  int count, positions;
  __device__ __forceinline__ explicit Splits(int length) {
    const int tiles = (length + kTile - 1) / kTile, max_splits = min(tiles, kMaxSplits);
    const int split_tiles = (tiles + max_splits - 1) / max_splits;
    positions = split_tiles * kTile;
    count = (tiles + split_tiles - 1) / split_tiles;
  }
};

// A split joins those before it: their sum is multiplied by `keep`, its own by `add`. `total` is its total times `add`.
struct alignas(16) MergeFactors {
  float keep, add, total;
};

// first * keep + second
__device__ __forceinline__ float4 added(const float4& first, float keep, const float4& second) {
  return make_float4(
      fmaf(first.x, keep, second.x), fmaf(first.y, keep, second.y), fmaf(first.z, keep, second.z),
      fmaf(first.w, keep, second.w));
}

// first * keep + second * add
__device__ __forceinline__ float4 added(const float4& first, float keep, const float4& second, float add) {
  return added(first, keep, make_float4(second.x * add, second.y * add, second.z * add, second.w * add));
}

// The factors of all splits of a head, by a warp: those that merge() gives one after the other, from kNothing on.
__device__ __forceinline__ MergeFactors merge_factors(SoftmaxState split) {
  float maximum = split.maximum;
#pragma unroll
  for (int by = 1; by < kWarp; by *= 2) maximum = fmaxf(maximum, __shfl_up_sync(kAllLanes, maximum, by));
  const float before = __shfl_up_sync(kAllLanes, maximum, 1);
  const bool is_first = threadIdx.x % kWarp == 0;
  const float add = expf(split.maximum - maximum);
  return {expf((is_first ? kNothing.maximum : before) - maximum), add, split.total * add};
}

// The keys and values of a row and KV head.
template <typename T>
struct Sequence {
  const T *keys, *values;
  const int32_t* pages;
  int64_t page_stride;
  int length, head, page_shift, head_dim;

  __device__ __forceinline__ Sequence(const AttentionArguments& a, int row, int kv_head, int dims)
      : keys(static_cast<const T*>(a.keys)),
        values(static_cast<const T*>(a.values)),
        pages(a.page_table + a.slots[row] * a.max_pages),
        page_stride(a.page_stride),
        length(a.cache_positions[row] + 1),
        head(kv_head),
        page_shift(a.page_shift),
        head_dim(dims) {}

  // The page of a position, or zero at the end.
  __device__ __forceinline__ int page_at(int position) const {
    return position < length ? pages[position >> page_shift] : 0;
  }

  // The offset of the keys and values from `position` on, which lie in one page as far as a warp takes them.
  __device__ __forceinline__ int64_t row_in(int64_t page, int position) const {
    const int64_t in_page = (static_cast<int64_t>(head) << page_shift) + (position & ((1 << page_shift) - 1));
    return page * page_stride + in_page * head_dim;
  }

  // The same; or zero at the end.
  __device__ __forceinline__ int64_t row_at(int position) const {
    return position < length ? row_in(pages[position >> page_shift], position) : 0;
  }
};

// Adds what the warps of a split give for a head, in order. A lane has four dimensions of `sum`.
template <int kGroup>
__device__ __forceinline__ SoftmaxState
add_warps(float4& sum, const WarpSums<kGroup> (&warps)[kWarps], int head, int lane) {
  SoftmaxState state = kNothing;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) state.maximum = fmaxf(state.maximum, warps[w].states[head].maximum);
  sum = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const float factor = expf(warps[w].states[head].maximum - state.maximum);
    sum = added(*reinterpret_cast<const float4*>(&warps[w].sums[head][4 * lane]), factor, sum);
    state.total = fmaf(warps[w].states[head].total, factor, state.total);
  }
  return state;
}

// Writes the four dimensions that a lane has of an output row.
__device__ __forceinline__ void write_row(float* row, const float4& sum, float total, int lane, int head_dim) {
  const float all[4] = {sum.x, sum.y, sum.z, sum.w}, inverse = 1 / total;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (4 * lane + i < head_dim) row[4 * lane + i] = all[i] * inverse;
  }
}

}  // namespace

}  // namespace higgs_native::cuda
