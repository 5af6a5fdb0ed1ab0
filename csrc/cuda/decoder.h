// The operators of a decoder layer, as functions. Each is registered under its name without `_cuda`; called so, it has
// no adapters and prefetches nothing.
#pragma once

#include "args/decoder.h"
#include "cuda/linear.h"

namespace higgs_native::cuda {

// What attention loads for the linear operators behind it.
struct AttentionPrefetch {
  NextWeights o, gate_up;
};

void qkv_rope_cache_cuda(
    const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const Tensor& x, const Tensor& text_norm,
    const Tensor& audio_norm, double eps, const Tensor& qkv_weight, const OptionalTensor& qkv_scales,
    const Tensor& rope_table, const Tensor& page_table, const Tensor& slots, const Tensor& positions,
    const Tensor& cache_positions, int64_t num_text_rows, const OptionalTensor& query_norm,
    const OptionalTensor& key_norm, const LowRank& low_rank, const Tensor* split_counters, const NextWeights& next);

// `split_counters` [rows * query heads], int32: zeros, which qkv_rope_cache_cuda writes; made here if null.
void attention_cuda(
    const Tensor& out, const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
    const Tensor& page_table, const Tensor& slots, const Tensor& cache_positions, double scale,
    const Tensor* split_counters, const AttentionPrefetch& prefetch);

// `next_first`: see Gemm.
void linear_cuda(
    const Tensor& out, const Tensor& x, const Tensor& weight, const OptionalTensor& scales,
    const OptionalTensor& residual, const LowRank& low_rank, const NextWeights& next, bool next_first);

// `prefetched_bytes`: of the weights of `down` that `gate_up` loads. `next`: what the last `down` loads.
void dual_ffn_cuda(
    const Tensor& out, const Tensor& x, const Tensor& text_norm, const Tensor& text_gate_up,
    const OptionalTensor& text_gate_up_scales, const Tensor& text_down, const OptionalTensor& text_down_scales,
    const Tensor& audio_norm, const Tensor& audio_gate_up, const OptionalTensor& audio_gate_up_scales,
    const Tensor& audio_down, const OptionalTensor& audio_down_scales, double eps, int64_t num_text_rows,
    const FeedForwardLowRank& text_low_rank, const FeedForwardLowRank& audio_low_rank, int64_t prefetched_bytes,
    const NextWeights& next);

}  // namespace higgs_native::cuda
