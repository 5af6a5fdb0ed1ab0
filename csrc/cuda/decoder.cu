// All decoder layers, from the CUDA operators.
#include "common/decoder.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cuda/decoder.h"
#include "cuda/launch.h"

namespace higgs_native::cuda {

namespace {

// Bytes of weights that a launch loads into L2 for later ones. At 3 TB/s, 12 MB take as long as the time from the last
// loads of a launch to the first ones of the next that go beyond them: the gap, and x, which is read and rounded first.
// Behind qkv's come the keys and values that attention asks for. Attention, and `o` with weights that L2 has, leave
// memory idle for longer. L2 holds 50 MB, of which data that all multiprocessors read may take twice its size.
// Above kPrefetchRows the rows of x are packed, and launches wait for L2 or for products; but gate_up's of a prompt's
// text rows waits for memory, which `o` leaves idle, where warpgroups multiply it.
constexpr int64_t kPrefetchRows = 8;
constexpr int64_t kQkvPrefetch = 4 << 20, kAttentionPrefetch = 16 << 20, kOPrefetch = 14 << 20;
constexpr int64_t kLinearPrefetch = 12 << 20;

// The operators of a layer, and what they do for each other.
struct Operators {
  Tensor split_counters;                  // of all layers, which run one after the other
  const Tensor* behind_layers = nullptr;  // the weight that is read after the last layer, if it is known

  // The weights that launches of the running layer prefetch.
  struct Prefetches {
    AttentionPrefetch attention;
    NextWeights qkv, o, down;
    int64_t gate_up_bytes = 0;
  } prefetches;

  void begin_layer(const Tensor* layer, const Tensor* next_layer, int64_t rows, int64_t text_rows) {
    const Tensor& gate_up = layer[text_rows > 0 ? kTextGateUp : kAudioGateUp];
    prefetches = {};
    if (rows <= kPrefetchRows) {
      prefetches.qkv = next_weights(layer[kO], kQkvPrefetch);
      prefetches.attention.o = next_weights(layer[kO], kAttentionPrefetch, prefetches.qkv.bytes());
      prefetches.attention.gate_up = next_weights(gate_up, kAttentionPrefetch - prefetches.attention.o.bytes());
      prefetches.gate_up_bytes = kLinearPrefetch;
      const Tensor* behind = next_layer ? &next_layer[kQkv] : behind_layers;
      if (behind) prefetches.down = next_weights(*behind, kLinearPrefetch);
    }
    prefetches.o = next_weights(gate_up, kOPrefetch, prefetches.attention.gate_up.bytes());
  }

  template <typename... Arguments>
  void qkv_rope_cache(const Arguments&... arguments) const {
    qkv_rope_cache_cuda(arguments..., &split_counters, prefetches.qkv);
  }
  template <typename... Arguments>
  void attention(const Arguments&... arguments) const {
    attention_cuda(arguments..., &split_counters, prefetches.attention);
  }
  template <typename... Arguments>
  void linear(const Arguments&... arguments) const {
    // Attention has loaded most of its weights: the others come behind those of gate_up.
    linear_cuda(arguments..., prefetches.o, true);
  }
  void dual_ffn(
      const Tensor& out, const Tensor& x, const Tensor& text_norm, const Tensor& text_gate_up,
      const OptionalTensor& text_gate_up_scales, const Tensor& text_down, const OptionalTensor& text_down_scales,
      const Tensor& audio_norm, const Tensor& audio_gate_up, const OptionalTensor& audio_gate_up_scales,
      const Tensor& audio_down, const OptionalTensor& audio_down_scales, double eps, int64_t text_rows,
      const FeedForwardLowRank& text_low_rank, const FeedForwardLowRank& audio_low_rank) const {
    dual_ffn_cuda(
        out, x, text_norm, text_gate_up, text_gate_up_scales, text_down, text_down_scales, audio_norm, audio_gate_up,
        audio_gate_up_scales, audio_down, audio_down_scales, eps, text_rows, text_low_rank, audio_low_rank,
        prefetches.gate_up_bytes, prefetches.down);
  }
};

void decoder_layers_cuda(
    const Tensor& x, const Tensor& query, const Tensor& attended, std::vector<Tensor> key_caches,
    std::vector<Tensor> value_caches, std::vector<Tensor> weights, std::vector<int64_t> skips_audio, double eps,
    const Tensor& rope_table, const Tensor& page_table, const Tensor& slots, const Tensor& positions,
    const Tensor& text_positions, int64_t num_text_rows, const OptionalTensor& adapters, std::vector<Tensor> factors,
    int64_t first_kept, int64_t num_kept, const OptionalTensor& following) {
  const DecoderLayers args = check_decoder_layers(
      x, query, attended, key_caches, value_caches, weights, skips_audio, rope_table, page_table, slots, positions,
      text_positions, num_text_rows, adapters, factors, first_kept, num_kept, following);
  const Launch launch("decoder_layers", x);
  Operators operators = {};
  operators.behind_layers = following ? &*following : nullptr;
  // A counter for each row and query head: attention needs no more.
  const int64_t head_dim = args.layers > 0 ? std::max<int64_t>(key_caches[0].size(3), 1) : 1;
  operators.split_counters = torch::stable::new_empty(x, {query.numel() / head_dim}, ScalarType::Int);
  run_decoder_layers(
      operators, args, x, query, attended, key_caches, value_caches, weights, skips_audio, eps, rope_table, page_table,
      slots, positions, text_positions, num_text_rows, adapters, factors);
}

}  // namespace

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY_IMPL(higgs_native, HIGGS_NATIVE_CUDA_KEY, m) {
  m.impl("decoder_layers", TORCH_BOX(&higgs_native::cuda::decoder_layers_cuda));
}
