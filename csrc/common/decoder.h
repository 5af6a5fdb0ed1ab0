// All decoder layers in one call: a frame crosses from Python once, not four times per layer.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>

#include "args/decoder.h"
#include "args/packed_weight.h"

namespace higgs_native {

// Whether text and audio rows of a layer have the same feed-forward weights, adapters included: the very tensors. Then
// one pass over the weights serves all rows.
inline bool shares_feed_forward(
    const DecoderLayers& args, const std::vector<Tensor>& weights, const std::vector<Tensor>& factors, size_t layer) {
  auto same = [](const Tensor& text, const Tensor& audio) { return text.const_data_ptr() == audio.const_data_ptr(); };
  const Tensor* w = &weights[layer * kLayerWeights];
  for (int i = 0; i < kAudioNorm - kTextNorm; ++i) {
    if (!same(w[kTextNorm + i], w[kAudioNorm + i])) return false;
  }
  const size_t text = 2 * kTextGateUpLinear, audio = 2 * kAudioGateUpLinear;
  for (size_t adapter = 0; adapter < args.num_adapters; ++adapter) {
    const Tensor* f = &factors[(adapter * args.layers + layer) * kLayerFactors];
    for (size_t i = 0; i < audio - text; ++i) {
      if (!same(f[text + i], f[audio + i])) return false;
    }
  }
  return true;
}

// `operators` has the four operators of a layer for one backend: qkv_rope_cache, attention, linear and dual_ffn. The
// last argument of all but attention says what adapters add to them. begin_layer() gets the weights of a layer, those of
// the one behind it or null, and how many rows go through attention and what follows, before its operators run.
//
// The last layer computes keys and values of all rows, and the states of the kept rows alone.
template <typename Operators>
void run_decoder_layers(
    Operators operators, const DecoderLayers& args, const Tensor& x, const Tensor& query, const Tensor& attended,
    const std::vector<Tensor>& key_caches, const std::vector<Tensor>& value_caches, const std::vector<Tensor>& weights,
    const std::vector<int64_t>& skips_audio, double eps, const Tensor& rope_table, const Tensor& page_table,
    const Tensor& slots, const Tensor& positions, const Tensor& text_positions, int64_t num_text_rows,
    const OptionalTensor& adapters, const std::vector<Tensor>& factors) {
  // narrow takes its tensor by a reference that is not const.
  auto narrowed = [](Tensor t, int64_t first, int64_t n) {
    return n == t.size(0) ? t : torch::stable::narrow(t, 0, first, n);
  };
  for (size_t layer = 0; layer < args.layers; ++layer) {
    const int64_t rows = skips_audio[layer] ? num_text_rows : args.rows;
    if (rows == 0) continue;
    const Tensor* w = &weights[layer * kLayerWeights];
    const RowRange computed = args.computed_rows(layer, rows);
    const int64_t text_rows = std::clamp<int64_t>(num_text_rows - computed.first, 0, computed.count);
    operators.begin_layer(w, layer + 1 < args.layers ? w + kLayerWeights : nullptr, computed.count, text_rows);
    auto optional = [&](int i) { return w[i].numel() == 0 ? OptionalTensor() : OptionalTensor(w[i]); };
    auto scales = [&](int matrix) { return optional(matrix + 1); };
    const Tensor& cache_positions = skips_audio[layer] ? text_positions : positions;
    const Tensor &keys = key_caches[layer], &cached_values = value_caches[layer];
    operators.qkv_rope_cache(
        narrowed(query, 0, rows), keys, cached_values, narrowed(x, 0, rows), w[kTextInputNorm], w[kAudioInputNorm], eps,
        w[kQkv], scales(kQkv), rope_table, page_table, narrowed(slots, 0, rows), narrowed(positions, 0, rows),
        cache_positions, num_text_rows, optional(kQueryNorm), optional(kKeyNorm),
        args.low_rank(adapters, factors, layer, kQkvLinear));
    if (computed.count == 0) continue;
    auto of_computed = [&](const Tensor& t) { return narrowed(t, computed.first, computed.count); };
    const Tensor states = of_computed(x), values = of_computed(attended);
    const OptionalTensor row_adapters = adapters ? OptionalTensor(of_computed(*adapters)) : OptionalTensor();
    auto low_rank = [&](LayerLinear linear) { return args.low_rank(row_adapters, factors, layer, linear); };
    operators.attention(
        values, of_computed(query), keys, cached_values, page_table, of_computed(slots), of_computed(cache_positions),
        1 / std::sqrt(static_cast<double>(keys.size(3))));
    operators.linear(states, values, w[kO], scales(kO), states, low_rank(kOLinear));
    operators.dual_ffn(
        states, states, w[kTextNorm], w[kTextGateUp], scales(kTextGateUp), w[kTextDown], scales(kTextDown),
        w[kAudioNorm], w[kAudioGateUp], scales(kAudioGateUp), w[kAudioDown], scales(kAudioDown), eps,
        shares_feed_forward(args, weights, factors, layer) ? 0 : text_rows,
        {low_rank(kTextGateUpLinear), low_rank(kTextDownLinear)},
        {low_rank(kAudioGateUpLinear), low_rank(kAudioDownLinear)});
  }
}

}  // namespace higgs_native
