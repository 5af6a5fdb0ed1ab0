// qkv_rope_cache: RMSNorm, the query, key and value projections, rotary embedding, and the write into the KV cache, by
//                 one gemm_kernel (linear.cu) with an epilogue. Heads that are normalized too take a second kernel.
// attention: softmax(scale * q K^T) V of every row over its own sequence, up to and including its own cache position.
//
// The cache is [pages, KV heads, page size, head_dim]: a page holds consecutive positions of a sequence, and the page
// table [slots, max pages] says which pages a sequence has. Split-KV: a sequence is divided into at most kMaxSplits
// splits of whole tiles of kTile positions, by its length alone; a tile is 1, 2 or 4 pages. With few rows a block takes
// one split of a row and KV head, for all query heads that share it, and the last block to finish merges the splits.
// With many rows one block takes all splits. They are merged in order either way, so the result depends neither on the
// batch nor on the pages.
// Threads: half a warp takes a position, 16 bytes (8 dimensions of 16 bits) per lane. A tile's keys give scores, then
// its softmax is computed, then its values, loaded by then, are weighted. Lengths and pages of sequences are read on
// the device, the pages of a tile during the tile before.
// Bytes moved: the keys and values of each row's sequence, once.
#include "args/attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cuda/attention/tile.h"
#include "cuda/decoder.h"
#include "cuda/linear.h"

namespace higgs_native::cuda {

namespace {

constexpr int kMaxSplits = 16;

struct AttentionArguments {
  float* out;          // [rows, heads * group * head_dim]
  const float* query;  // likewise
  const void *keys, *values;
  const int32_t* page_table;               // [slots, max_pages]
  const int32_t *slots, *cache_positions;  // [rows]
  float* partials;                         // [rows, heads, parts, splits, kGroup, head_dim + 2]: sums, maximum, total
  int32_t* split_counters;                 // [rows, heads, parts]
  int64_t max_pages, page_stride;          // page_stride: numbers between two pages
  int page_shift;                          // a page has 1 << page_shift positions
  int heads, group, head_dim, splits;
  int parts;  // blocks that share a group larger than kGroup
  float scale;
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

// Merges the next split's element and softmax state into those of the splits before it.
__device__ __forceinline__ void merge_next(
    float& sum, float& maximum, float& total, float next_sum, float next_maximum, float next_total) {
  const SoftmaxMerge merged = merge({maximum, total}, {next_maximum, next_total});
  sum = merged.sum(sum, next_sum);
  maximum = merged.state.maximum;
  total = merged.state.total;
}

// kVectorized: see TileRows; kSerial: one block takes all splits.
template <typename T, int kGroup, bool kVectorized, bool kSerial>
__global__ void __launch_bounds__(kThreads, 3) attention_kernel(AttentionArguments a) {
  __shared__ float scores[kGroup][kTile];
  __shared__ float keep[kGroup], maxima[kGroup], totals[kGroup];
  __shared__ float half_sums[kHalves][kGroup][kMaxHeadDim];
  __shared__ int64_t tile_rows[2][kPositions];
  __shared__ bool is_last;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int half = thread / 16, lane16 = thread % 16;
  const int item = static_cast<int>(blockIdx.x), row = item / (a.heads * a.parts), head = item / a.parts % a.heads;
  const int first_head = item % a.parts * kGroup, group = min(kGroup, a.group - first_head);
  allow_next_launch();
  wait_for_earlier_launches();

  const int length = a.cache_positions[row] + 1;
  const Splits splits(length);
  if (!kSerial && static_cast<int>(blockIdx.y) >= splits.count) return;
  const int32_t* pages = a.page_table + a.slots[row] * a.max_pages;
  const T *keys = static_cast<const T*>(a.keys), *values = static_cast<const T*>(a.values);
  const int64_t query_at = (static_cast<int64_t>(row) * a.heads * a.group + head * a.group + first_head) * a.head_dim;

  float query[kGroup][kLaneDims];
#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
    const int dimension = lane16 * kLaneDims;
    load_dims(query[g], a.query + query_at + (g < group ? g : 0) * a.head_dim, dimension, a.head_dim);
  }
  const int first_split = kSerial ? 0 : static_cast<int>(blockIdx.y),
            last_split = kSerial ? splits.count : first_split + 1;
  // The last warp, which has no query head if there are fewer than warps, finds the rows of the tile at `position`.
  auto find_rows = [&](int position) {
    position += lane * kHalves;
    if (warp != kThreads / kWarp - 1 || lane >= kPositions || position >= length) return;
    const int64_t page = pages[position >> a.page_shift];
    const int64_t in_page = (static_cast<int64_t>(head) << a.page_shift) + (position & ((1 << a.page_shift) - 1));
    tile_rows[position / kTile % 2][lane] = page * a.page_stride + in_page * a.head_dim;
  };
  find_rows(first_split * splits.positions);  // while the query is on its way
  __syncthreads();
#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) query[g][i] *= a.scale;
  }

  // Elements of [kGroup, head_dim] that this thread merges.
  constexpr int kElements = (kGroup * kMaxHeadDim + kThreads - 1) / kThreads;
  float merged[kElements] = {}, merged_maximum[kElements] = {}, merged_total[kElements] = {};
  for (int split = first_split; split < last_split; ++split) {
    const int begin = split * splits.positions, count = min(splits.positions, length - begin);
    float sums[kGroup][kLaneDims] = {};
    float maximum = -kMaxFloat, total = 0;  // of query head `warp`, in all its lanes
    for (int first = 0; first < count; first += kTile) {
      const Tile tile = {
          tile_rows[(begin + first) / kTile % 2], half, min(kTile, count - first), lane16 * kLaneDims, a.head_dim};
      TileRows<T, kVectorized> key_rows, value_rows;
      key_rows.load(keys, tile);
      value_rows.load(values, tile);
      score_tile(scores, query, key_rows, keys, tile, lane16);
      __syncthreads();
      find_rows(begin + first + kTile);  // in the other half of tile_rows: weigh_tile still reads this one
      if (warp < kGroup) {
        const float factor = softmax_tile(scores[warp], maximum, total, lane, tile.count);
        if (lane == 0) keep[warp] = factor;
      }
      __syncthreads();
      weigh_tile(sums, scores, keep, value_rows, values, tile);
      __syncthreads();
    }
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) half_sums[half][g][lane16 * kLaneDims + i] = sums[g][i];
    }
    if (warp < kGroup && lane == 0) {
      maxima[warp] = maximum;
      totals[warp] = total;
    }
    __syncthreads();
    float* partial = a.partials + (static_cast<int64_t>(item) * a.splits + split) * kGroup * (a.head_dim + 2);
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int at = thread + e * kThreads, g = at / a.head_dim, dimension = at % a.head_dim;
      if (g >= group) continue;
      float sum = 0;
#pragma unroll
      for (int h = 0; h < kHalves; ++h) sum += half_sums[h][g][dimension];
      if (!kSerial && splits.count > 1) {
        partial[g * (a.head_dim + 2) + dimension] = sum;
        if (dimension == 0) {
          partial[g * (a.head_dim + 2) + a.head_dim] = maxima[g];
          partial[g * (a.head_dim + 2) + a.head_dim + 1] = totals[g];
        }
      } else if (split == first_split) {
        merged[e] = sum;
        merged_maximum[e] = maxima[g];
        merged_total[e] = totals[g];
      } else {
        merge_next(merged[e], merged_maximum[e], merged_total[e], sum, maxima[g], totals[g]);
      }
    }
    __syncthreads();
  }

  if (!kSerial && splits.count > 1) {
    __threadfence();
    __syncthreads();
    if (thread == 0) {
      is_last = atomicAdd(a.split_counters + item, 1) == splits.count - 1;
      if (is_last) a.split_counters[item] = 0;  // for the next launch
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    const volatile float* partials = a.partials + static_cast<int64_t>(item) * a.splits * kGroup * (a.head_dim + 2);
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int at = thread + e * kThreads, g = at / a.head_dim, dimension = at % a.head_dim;
      if (g >= group) continue;
      for (int split = 0; split < splits.count; ++split) {
        const volatile float* partial = partials + (static_cast<int64_t>(split) * kGroup + g) * (a.head_dim + 2);
        const float sum = partial[dimension], maximum = partial[a.head_dim], total = partial[a.head_dim + 1];
        if (split == 0) {
          merged[e] = sum;
          merged_maximum[e] = maximum;
          merged_total[e] = total;
        } else {
          merge_next(merged[e], merged_maximum[e], merged_total[e], sum, maximum, total);
        }
      }
    }
  }
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int at = thread + e * kThreads, g = at / a.head_dim, dimension = at % a.head_dim;
    if (g < group) a.out[query_at + static_cast<int64_t>(g) * a.head_dim + dimension] = merged[e] / merged_total[e];
  }
}

template <typename T, int kGroup, bool kVectorized>
void run_attention(const Launch& launch, const AttentionArguments& a, int64_t rows, bool serial) {
  // Rows are along x: a grid may have 2^31 - 1 blocks along x, but 65,535 along y and z.
  const dim3 grid(static_cast<unsigned>(rows * a.heads * a.parts), static_cast<unsigned>(serial ? 1 : a.splits));
  if (serial) launch(attention_kernel<T, kGroup, kVectorized, true>, grid, kThreads, 0, a);
  else launch(attention_kernel<T, kGroup, kVectorized, false>, grid, kThreads, 0, a);
}

template <typename T, int kGroup>
void attention_of_group(const Launch& launch, const AttentionArguments& a, int64_t rows, bool serial) {
  if constexpr (sizeof(T) == 2) {
    const bool vectorized = a.head_dim % kLaneDims == 0 && is_aligned(a.keys) && is_aligned(a.values);
    if (vectorized) return run_attention<T, kGroup, true>(launch, a, rows, serial);
  }
  run_attention<T, kGroup, false>(launch, a, rows, serial);
}

template <typename T>
void attention_of_dtype(const Launch& launch, const AttentionArguments& a, int64_t rows, bool serial) {
  switch (std::min(a.group, kMaxGroup)) {
    case 1: return attention_of_group<T, 1>(launch, a, rows, serial);
    case 2: return attention_of_group<T, 2>(launch, a, rows, serial);
    case 3: return attention_of_group<T, 3>(launch, a, rows, serial);
    default: return attention_of_group<T, 4>(launch, a, rows, serial);
  }
}

void attention_registered(
    const Tensor& out, const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
    const Tensor& page_table, const Tensor& slots, const Tensor& cache_positions, double scale) {
  attention_cuda(out, query, key_cache, value_cache, page_table, slots, cache_positions, scale, nullptr);
}

void qkv_rope_cache_registered(
    const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const Tensor& x, const Tensor& text_norm,
    const Tensor& audio_norm, double eps, const Tensor& qkv_weight, const OptionalTensor& qkv_scales,
    const Tensor& rope_table, const Tensor& page_table, const Tensor& slots, const Tensor& positions,
    const Tensor& cache_positions, int64_t num_text_rows, const OptionalTensor& query_norm,
    const OptionalTensor& key_norm) {
  qkv_rope_cache_cuda(
      query, key_cache, value_cache, x, text_norm, audio_norm, eps, qkv_weight, qkv_scales, rope_table, page_table,
      slots, positions, cache_positions, num_text_rows, query_norm, key_norm, {});
}

}  // namespace

void qkv_rope_cache_cuda(
    const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const Tensor& x, const Tensor& text_norm,
    const Tensor& audio_norm, double eps, const Tensor& qkv_weight, const OptionalTensor& qkv_scales,
    const Tensor& rope_table, const Tensor& page_table, const Tensor& slots, const Tensor& positions,
    const Tensor& cache_positions, int64_t num_text_rows, const OptionalTensor& query_norm,
    const OptionalTensor& key_norm, const LowRank& low_rank) {
  const char* op = "qkv_rope_cache";
  const QkvRopeCache checked = check_qkv_rope_cache(
      query, key_cache, value_cache, x, text_norm, audio_norm, qkv_weight, qkv_scales, rope_table, page_table, slots,
      positions, cache_positions, num_text_rows, query_norm, key_norm);
  if (checked.rows == 0) return;
  Gemm p;
  p.weight = checked.weight;
  p.x = x.const_data_ptr<float>();
  p.rows = static_cast<int>(checked.rows);
  p.norm = row_norm(text_norm, audio_norm, num_text_rows, eps);
  p.epilogue = Epilogue::kRope;
  p.rope = {
      query.mutable_data_ptr<float>(),
      key_cache.mutable_data_ptr(),
      value_cache.mutable_data_ptr(),
      number_type(key_cache),
      rope_table.const_data_ptr<float>(),
      slots.const_data_ptr<int32_t>(),
      positions.const_data_ptr<int32_t>(),
      cache_positions.const_data_ptr<int32_t>(),
      static_cast<int>(checked.query_heads),
      static_cast<int>(checked.cache.heads),
      static_cast<int>(checked.cache.head_dim),
      page_table.const_data_ptr<int32_t>(),
      static_cast<int>(checked.cache.max_pages),
      checked.cache.page_shift(),
      query_norm ? query_norm->const_data_ptr() : nullptr,
      key_norm ? key_norm->const_data_ptr() : nullptr};
  const Launch launch(op, query);
  const Tensor added = add_low_rank(launch, p, low_rank, 0, query);
  gemm(launch, p, query);
}

void attention_cuda(
    const Tensor& out, const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
    const Tensor& page_table, const Tensor& slots, const Tensor& cache_positions, double scale,
    const Tensor* split_counters) {
  const char* op = "attention";
  const auto [cache, rows, group] =
      check_attention(out, query, key_cache, value_cache, page_table, slots, cache_positions);
  HIGGS_CHECK(
      cache.head_dim <= kMaxHeadDim, op, ": key_cache must have a head_dim of at most ", kMaxHeadDim, " on CUDA, got ",
      cache.head_dim);
  if (rows == 0) return;
  Launch launch(op, out);
  AttentionArguments a = {};
  a.out = out.mutable_data_ptr<float>();
  a.query = query.const_data_ptr<float>();
  a.keys = key_cache.const_data_ptr();
  a.values = value_cache.const_data_ptr();
  a.page_table = page_table.const_data_ptr<int32_t>();
  a.slots = slots.const_data_ptr<int32_t>();
  a.cache_positions = cache_positions.const_data_ptr<int32_t>();
  a.max_pages = cache.max_pages;
  a.page_stride = cache.heads * cache.page_size * cache.head_dim;
  a.page_shift = cache.page_shift();
  a.heads = static_cast<int>(cache.heads);
  a.group = static_cast<int>(group);
  a.head_dim = static_cast<int>(cache.head_dim);
  a.splits = static_cast<int>(std::min<int64_t>(kMaxSplits, ceil_div(cache.max_length(), kTile)));
  const int group_of_block = std::min(a.group, kMaxGroup);
  a.parts = static_cast<int>(ceil_div(a.group, group_of_block));
  a.scale = static_cast<float>(scale);
  const int64_t items = rows * a.heads * a.parts;
  const bool serial = a.splits == 1 || items >= 4 * launch.multiprocessors();
  Tensor partials, own_counters;
  if (!serial) {
    partials = torch::stable::new_empty(out, {items * a.splits * group_of_block * (a.head_dim + 2)}, ScalarType::Float);
    a.partials = partials.mutable_data_ptr<float>();
    if (!split_counters) {
      own_counters = torch::stable::new_zeros(out, {items}, ScalarType::Int);
      split_counters = &own_counters;
    }
    a.split_counters = split_counters->mutable_data_ptr<int32_t>();
  }
  with_weight_type(key_cache, [&](auto* numbers) {
    attention_of_dtype<std::remove_cv_t<std::remove_pointer_t<decltype(numbers)>>>(launch, a, rows, serial);
  });
}

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY_IMPL(higgs_native, HIGGS_NATIVE_CUDA_KEY, m) {
  m.impl("qkv_rope_cache", TORCH_BOX(&higgs_native::cuda::qkv_rope_cache_registered));
  m.impl("attention", TORCH_BOX(&higgs_native::cuda::attention_registered));
}
