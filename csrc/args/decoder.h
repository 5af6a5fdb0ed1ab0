// All decoder layers in one call, so that a frame costs one crossing from Python instead of four a layer.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <vector>

#include "args/packed_weight.h"

namespace higgs_native {

// What a layer has in `weights`, in this order; a matrix is followed by its scales, which are empty where it has none.
enum LayerWeight {
  kTextInputNorm,
  kAudioInputNorm,
  kQkv,
  kO = kQkv + 2,
  kTextNorm = kO + 2,
  kTextGateUp,
  kTextDown = kTextGateUp + 2,
  kAudioNorm = kTextDown + 2,
  kAudioGateUp,
  kAudioDown = kAudioGateUp + 2,
  kLayerWeights = kAudioDown + 2
};

// `operators` has the four operators of a layer for one backend: qkv_rope_cache, attention, linear and dual_ffn.
template <typename Operators>
void run_decoder_layers(
    const Operators& operators, const Tensor& x, const Tensor& query, const Tensor& attended,
    const std::vector<Tensor>& key_caches, const std::vector<Tensor>& value_caches, const std::vector<Tensor>& weights,
    const std::vector<int64_t>& skips_audio, double eps, const Tensor& rope_table, const Tensor& slots,
    const Tensor& positions, const Tensor& text_positions, int64_t num_text_rows) {
  const char* op = "decoder_layers";
  check_tensor(op, "x", x, ScalarType::Float, {kAnySize, kAnySize});
  const int64_t rows = x.size(0);
  check_tensor(op, "query", query, ScalarType::Float, {rows, kAnySize});
  check_tensor(op, "attended", attended, ScalarType::Float, {rows, query.size(1)});
  check_tensor(op, "slots", slots, ScalarType::Int, {rows});
  check_tensor(op, "positions", positions, ScalarType::Int, {rows});
  check_text_rows(op, num_text_rows, rows);
  const size_t layers = skips_audio.size();
  STD_TORCH_CHECK(
      key_caches.size() == layers && value_caches.size() == layers && weights.size() == layers * kLayerWeights, op,
      ": ", layers, " layers need as many key and value caches, and ", layers * kLayerWeights, " weights, got ",
      key_caches.size(), ", ", value_caches.size(), " and ", weights.size());
  // narrow takes what it narrows by a reference that is not const.
  auto first = [](Tensor t, int64_t n) { return n == t.size(0) ? t : torch::stable::narrow(t, 0, 0, n); };
  for (size_t layer = 0; layer < layers; ++layer) {
    const int64_t n = skips_audio[layer] ? num_text_rows : rows;
    if (n == 0) continue;
    const Tensor* w = &weights[layer * kLayerWeights];
    auto scales = [&](int matrix) {
      return w[matrix + 1].numel() == 0 ? OptionalTensor() : OptionalTensor(w[matrix + 1]);
    };
    const Tensor states = first(x, n), q = first(query, n), values = first(attended, n), slot = first(slots, n);
    const Tensor& places = skips_audio[layer] ? text_positions : positions;
    const Tensor &keys = key_caches[layer], &cached_values = value_caches[layer];
    STD_TORCH_CHECK(keys.dim() == 4, op, ": key_caches[", layer, "] must have 4 dimensions, got ", shape_text(keys));
    operators.qkv_rope_cache(
        q, keys, cached_values, states, w[kTextInputNorm], w[kAudioInputNorm], eps, w[kQkv], scales(kQkv), rope_table,
        slot, first(positions, n), places, num_text_rows);
    operators.attention(values, q, keys, cached_values, slot, places, 1 / std::sqrt(static_cast<double>(keys.size(3))));
    operators.linear(states, values, w[kO], scales(kO), states);
    operators.dual_ffn(
        states, states, w[kTextNorm], w[kTextGateUp], scales(kTextGateUp), w[kTextDown], scales(kTextDown),
        w[kAudioNorm], w[kAudioGateUp], scales(kAudioGateUp), w[kAudioDown], scales(kAudioDown), eps, num_text_rows);
  }
}

}  // namespace higgs_native
