// qkv_rope_cache: RMSNorm, the query, key and value projections, rotary embedding, and the write into the KV cache, by
//                 one gemm_kernel (linear.cu) with an epilogue. Heads that are normalized too take a second kernel.
// attention: softmax(scale * q K^T) V of every row over its own sequence, up to and including its own cache position.
//
// The cache is [pages, KV heads, page size, head_dim]: a page holds consecutive positions of a sequence, and the page
// table [slots, max pages] says which pages a sequence has. Split-KV: a sequence is divided into at most kMaxSplits
// splits of whole tiles of kTile positions, by its length alone; a tile is 1, 2 or 4 pages. A block takes the splits of a
// row and KV head, for all query heads that share it. With few rows, several blocks share out the splits, and the last
// one to finish merges their results. Splits are merged in order either way, so the result depends neither on the batch
// nor on the pages. Many rows take a warp each instead (attention/prompts.h).
// Threads: a warp takes a quarter of each tile of a split, and the warps' sums are added, in order, when the split ends
// (attention/tile.h). The keys and values of a warp's next tile are in flight while it computes one.
// Lengths and pages of sequences are read on the device, those of a row before the wait for earlier launches, which do
// not write them; its first keys and values are prefetched into L2 by then.
// Bytes moved: the keys and values of each row's sequence, once.
#include "args/attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <type_traits>

#include "cuda/attention/prompts.h"
#include "cuda/attention/splits.h"
#include "cuda/decoder.h"
#include "cuda/linear.h"

namespace higgs_native::cuda {

namespace {

// kDims: head_dim, on tensor cores; 0: any, without them. Blocks along y share out the splits of a row and KV head.
template <typename T, int kGroup, int kDims>
__global__ void __launch_bounds__(kThreads, 3) attention_kernel(AttentionArguments a) {
  __shared__ WarpSums<kGroup> warp_sums[kWarps];
  __shared__ MergeFactors factors[kWarps][kMaxSplits];
  __shared__ bool is_last;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int item = static_cast<int>(blockIdx.x), row = item / (a.heads * a.parts), head = item / a.parts % a.heads;
  const int group = min(kGroup, a.group - item % a.parts * kGroup);
  const int first_split = static_cast<int>(blockIdx.y), stride = static_cast<int>(gridDim.y);
  const int head_dim = kDims != 0 ? kDims : a.head_dim;
  if (a.is_first) wait_for_earlier_launches();
  allow_next_launch();

  // No launch of the operator writes the positions, slots and pages of its rows: see cuda/device.h on weights.
  const Sequence<T> sequence(a, row, head, head_dim);
  const int length = sequence.length;
  const Splits splits(length);
  const bool is_empty = first_split >= splits.count, is_alone = stride == 1 || splits.count == 1;
  auto prefetch_at = [&](int position, int64_t at) {
    if (kDims == 0 || lane != 0 || position >= length) return;
    const auto bytes = static_cast<uint32_t>(min(kWarpPositions, length - position) * head_dim * sizeof(T));
    prefetch_l2(sequence.keys + at, bytes);
    prefetch_l2(sequence.values + at, bytes);
  };
  // The tile after the next one: of the same split, or of the block's next split.
  int tiles_left = splits.positions / kTile;
  auto tile_after = [&](int position) {
    if (--tiles_left > 0) return position + kTile;
    tiles_left = splits.positions / kTile;
    return position + kTile + (stride - 1) * splits.positions;
  };
  int position = first_split * splits.positions + warp * kWarpPositions, next = tile_after(position);
  int64_t row_now = 0, row_next = 0;
  if (!is_empty) {
    row_now = sequence.row_at(position);
    row_next = sequence.row_at(next);
    prefetch_at(position, row_now);
    prefetch_at(next, row_next);
  }
  const int64_t first_column = a.first_column(item, kGroup);
  const int block = static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x);
  const int blocks = static_cast<int>(gridDim.y * gridDim.x);
  wait_for_earlier_launches();
  if (is_empty) {
    a.prefetch.o.prefetch(block, blocks);
    a.prefetch.gate_up.prefetch(block, blocks);
    return;
  }

  std::conditional_t<kDims != 0, TensorTile<T, kGroup, kDims>, PlainTile<T, kGroup>> tile;
  tile.load_query(a.query + first_column, group, head_dim, lane);
  if (position < length) {
    tile.load_keys(sequence.keys + row_now, length - position, lane);
    tile.load_values(sequence.values + row_now, length - position, lane);
  }
  a.prefetch.o.prefetch(block, blocks);
  a.prefetch.gate_up.prefetch(block, blocks);
  tile.round_query(a.scale, lane);

  // The four dimensions of a query head that this thread merges.
  static_assert(kMaxGroup == kWarps && kQuads == kWarp);
  const bool has_element = warp < group && 4 * lane < head_dim;
  float4 merged = make_float4(0, 0, 0, 0);
  SoftmaxState merged_state = kNothing;
  for (int split = first_split; split < splits.count; split += stride) {
    tile.begin_split();
    const int end = min((split + 1) * splits.positions, length);
    for (int tile_position = split * splits.positions; tile_position < end; tile_position += kTile) {
      // The rest of the sequence, of which the warp has kWarpPositions at most.
      const int count = length - position, next_count = length - next;
      if (count > 0) tile.score(min(kWarpPositions, count), head_dim, lane);
      if (next_count > 0) tile.load_keys(sequence.keys + row_next, next_count, lane);
      if (count > 0) tile.weigh(min(kWarpPositions, count), head_dim, lane);
      if (next_count > 0) tile.load_values(sequence.values + row_next, next_count, lane);
      position = next;
      next = tile_after(next);
      row_next = sequence.row_at(next);
    }
    tile.end_split(warp_sums[warp], lane);
    __syncthreads();
    if (has_element) {
      float4 sum;
      const SoftmaxState state = add_warps(sum, warp_sums, warp, lane);
      if (is_alone) {
        const SoftmaxMerge m = merge(merged_state, state);
        merged = added(merged, m.keep, sum, m.add);
        merged_state = m.state;
      } else {
        const int64_t at = (static_cast<int64_t>(item) * a.splits + split) * kGroup + warp;
        a.sums[at * kQuads + lane] = sum;
        if (lane == 0) a.states[at] = make_float2(state.maximum, state.total);
      }
    }
    __syncthreads();
  }

  if (!is_alone) {
    if (thread == 0) is_last = fenced_add(a.split_counters + item, 1) == min(stride, splits.count) - 1;
    __syncthreads();
    if (!is_last || warp >= group) return;
    const int64_t first = static_cast<int64_t>(item) * a.splits * kGroup + warp;
    const float2 state =
        lane < splits.count ? load_l2(a.states + first + lane * kGroup) : make_float2(kNothing.maximum, kNothing.total);
    const float4* from = a.sums + first * kQuads + lane;
    // The loads of all splits are in flight at once. Those of a piece that don't exist add nothing.
    constexpr int kPiece = 8;
    float4 split_sums[kMaxSplits];
#pragma unroll
    for (int begin = 0; begin < kMaxSplits; begin += kPiece) {
      if (begin >= splits.count) break;
#pragma unroll
      for (int split = begin; split < begin + kPiece; ++split) {
        split_sums[split] =
            split < splits.count && has_element ? load_l2(from + split * kGroup * kQuads) : make_float4(0, 0, 0, 0);
      }
    }
    factors[warp][lane] = merge_factors({state.x, state.y});
    __syncwarp();
#pragma unroll
    for (int begin = 0; begin < kMaxSplits; begin += kPiece) {
      if (begin >= splits.count) break;
#pragma unroll
      for (int split = begin; split < begin + kPiece; ++split) {
        const MergeFactors f = factors[warp][split];
        merged = added(merged, f.keep, split_sums[split], f.add);
        merged_state.total = scaled_sum(merged_state.total, f.keep, f.total);
      }
    }
  }
  if (has_element) {
    write_row(a.out + first_column + warp * head_dim, merged, merged_state.total, lane, head_dim);
  }
}

template <typename T, int kGroup>
void attention_of_group(const Launch& launch, const AttentionArguments& a, dim3 grid) {
  if constexpr (sizeof(T) == 2) {
    if (is_aligned(a.query) && is_aligned(a.keys) && is_aligned(a.values)) {
      // A warp for each row, if that is enough for every multiprocessor, and rows share sequences: there are more than
      // slots.
      const int64_t items_of_row = static_cast<int64_t>(a.heads) * a.parts, items = a.rows * items_of_row;
      if (a.rows > a.slots_of_table && items >= kPromptWarps * launch.multiprocessors()) {
        const auto blocks = static_cast<unsigned>(ceil_div(a.rows, kWarps) * items_of_row);
        if (a.head_dim == 128) return launch(prompt_attention_kernel<T, kGroup, 128>, blocks, kThreads, 0, a);
        if (a.head_dim == 64) return launch(prompt_attention_kernel<T, kGroup, 64>, blocks, kThreads, 0, a);
      }
      if (a.head_dim == 128) return launch(attention_kernel<T, kGroup, 128>, grid, kThreads, 0, a);
      if (a.head_dim == 64) return launch(attention_kernel<T, kGroup, 64>, grid, kThreads, 0, a);
    }
  }
  launch(attention_kernel<T, kGroup, 0>, grid, kThreads, 0, a);
}

template <typename T>
void attention_of_dtype(const Launch& launch, const AttentionArguments& a, dim3 grid) {
  switch (std::min(a.group, kMaxGroup)) {
    case 1: return attention_of_group<T, 1>(launch, a, grid);
    case 2: return attention_of_group<T, 2>(launch, a, grid);
    case 3: return attention_of_group<T, 3>(launch, a, grid);
    default: return attention_of_group<T, 4>(launch, a, grid);
  }
}

void attention_registered(
    const Tensor& out, const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
    const Tensor& page_table, const Tensor& slots, const Tensor& cache_positions, double scale) {
  attention_cuda(out, query, key_cache, value_cache, page_table, slots, cache_positions, scale, nullptr, {});
}

void qkv_rope_cache_registered(
    const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const Tensor& x, const Tensor& text_norm,
    const Tensor& audio_norm, double eps, const Tensor& qkv_weight, const OptionalTensor& qkv_scales,
    const Tensor& rope_table, const Tensor& page_table, const Tensor& slots, const Tensor& positions,
    const Tensor& cache_positions, int64_t num_text_rows, const OptionalTensor& query_norm,
    const OptionalTensor& key_norm) {
  qkv_rope_cache_cuda(
      query, key_cache, value_cache, x, text_norm, audio_norm, eps, qkv_weight, qkv_scales, rope_table, page_table,
      slots, positions, cache_positions, num_text_rows, query_norm, key_norm, {}, nullptr, {});
}

}  // namespace

void qkv_rope_cache_cuda(
    const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const Tensor& x, const Tensor& text_norm,
    const Tensor& audio_norm, double eps, const Tensor& qkv_weight, const OptionalTensor& qkv_scales,
    const Tensor& rope_table, const Tensor& page_table, const Tensor& slots, const Tensor& positions,
    const Tensor& cache_positions, int64_t num_text_rows, const OptionalTensor& query_norm,
    const OptionalTensor& key_norm, const LowRank& low_rank, const Tensor* split_counters, const NextWeights& next) {
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
  p.next = next;
  if (split_counters) {
    p.zeroed = split_counters->mutable_data_ptr<int32_t>();
    p.num_zeroed = static_cast<int>(checked.rows * checked.query_heads);
  }
  const Launch launch(op, query);
  const Tensor added = add_low_rank(launch, p, low_rank, 0, query);
  gemm(launch, p, query);
}

void attention_cuda(
    const Tensor& out, const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
    const Tensor& page_table, const Tensor& slots, const Tensor& cache_positions, double scale,
    const Tensor* split_counters, const AttentionPrefetch& prefetch) {
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
  a.rows = static_cast<int>(rows);
  a.slots_of_table = page_table.size(0);
  a.heads = static_cast<int>(cache.heads);
  a.group = static_cast<int>(group);
  a.head_dim = static_cast<int>(cache.head_dim);
  a.splits = static_cast<int>(std::min<int64_t>(kMaxSplits, ceil_div(cache.max_length(), kTile)));
  const int group_of_block = std::min(a.group, kMaxGroup);
  a.parts = static_cast<int>(ceil_div(a.group, group_of_block));
  a.scale = static_cast<float>(scale);
  a.is_first = launch.is_first();
  a.prefetch = prefetch;
  const int64_t items = rows * a.heads * a.parts;
  // Blocks along y: one for each split if the multiprocessors hold them in pairs. Else fewer, so that most can start
  // beside the last blocks of qkv. None without a split.
  const int64_t places = launch.multiprocessors();
  const int64_t wanted = items * a.splits <= 2 * places ? a.splits : ceil_div(3 * places, 2 * items);
  const int64_t blocks = std::clamp<int64_t>(wanted, 1, a.splits);
  Tensor sums, states, own_counters;
  if (blocks > 1) {
    const int64_t heads = items * a.splits * group_of_block;
    sums = torch::stable::new_empty(out, {heads * kMaxHeadDim}, ScalarType::Float);
    states = torch::stable::new_empty(out, {heads * 2}, ScalarType::Float);
    a.sums = static_cast<float4*>(sums.mutable_data_ptr());
    a.states = static_cast<float2*>(states.mutable_data_ptr());
    if (!split_counters) {
      own_counters = torch::stable::new_zeros(out, {items}, ScalarType::Int);
      split_counters = &own_counters;
    }
    a.split_counters = split_counters->mutable_data_ptr<int32_t>();
  }
  // Rows are along x: a grid may have 2^31 - 1 blocks along x, but 65,535 along y and z.
  const dim3 grid(static_cast<unsigned>(items), static_cast<unsigned>(blocks));
  with_weight_type(key_cache, [&](auto* numbers) {
    attention_of_dtype<std::remove_cv_t<std::remove_pointer_t<decltype(numbers)>>>(launch, a, grid);
  });
}

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY_IMPL(higgs_native, HIGGS_NATIVE_CUDA_KEY, m) {
  m.impl("qkv_rope_cache", TORCH_BOX(&higgs_native::cuda::qkv_rope_cache_registered));
  m.impl("attention", TORCH_BOX(&higgs_native::cuda::attention_registered));
}
