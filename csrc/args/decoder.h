// The checked arguments of decoder_layers.
#pragma once

#include <vector>

#include "args/checks.h"

namespace higgs_native {

// A layer's tensors in `weights`, in this order. A matrix is followed by its scales. Scales and norms of heads that the
// layer lacks are empty.
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
  kQueryNorm = kAudioDown + 2,
  kKeyNorm,
  kLayerWeights
};

struct DecoderLayers {
  size_t layers;
  int64_t rows;
};

inline DecoderLayers check_decoder_layers(
    const Tensor& x, const Tensor& query, const Tensor& attended, const std::vector<Tensor>& key_caches,
    const std::vector<Tensor>& value_caches, const std::vector<Tensor>& weights,
    const std::vector<int64_t>& skips_audio, const Tensor& rope_table, const Tensor& page_table, const Tensor& slots,
    const Tensor& positions, const Tensor& text_positions, int64_t num_text_rows) {
  const char* op = "decoder_layers";
  check_devices(
      op, {{"x", x},
           {"query", query},
           {"attended", attended},
           {"rope_table", rope_table},
           {"page_table", page_table},
           {"slots", slots},
           {"positions", positions},
           {"text_positions", text_positions}});
  check_tensor(op, "x", x, ScalarType::Float, {kAnySize, kAnySize});
  const int64_t rows = x.size(0);
  check_tensor(op, "query", query, ScalarType::Float, {rows, kAnySize});
  check_tensor(op, "attended", attended, ScalarType::Float, {rows, query.size(1)});
  check_tensor(op, "slots", slots, ScalarType::Int, {rows});
  check_tensor(op, "positions", positions, ScalarType::Int, {rows});
  check_text_rows(op, num_text_rows, rows);
  const size_t layers = skips_audio.size();
  auto check_count = [&](const char* list, const std::vector<Tensor>& tensors, size_t of_layer) {
    HIGGS_CHECK(
        tensors.size() == layers * of_layer, op, ": ", list, " must have ", layers * of_layer, " tensors for ", layers,
        " layers of skips_audio, got ", tensors.size());
  };
  check_count("key_caches", key_caches, 1);
  check_count("value_caches", value_caches, 1);
  check_count("weights", weights, kLayerWeights);
  for (size_t layer = 0; layer < layers; ++layer) {
    const Tensor& keys = key_caches[layer];
    check_device(op, "key_caches", layer, keys, x);
    check_device(op, "value_caches", layer, value_caches[layer], x);
    HIGGS_CHECK(keys.dim() == 4, op, ": key_caches[", layer, "] must have 4 dimensions, got ", shape_text(keys));
    for (size_t i = layer * kLayerWeights; i < (layer + 1) * kLayerWeights; ++i) {
      if (weights[i].numel() > 0) check_device(op, "weights", i, weights[i], x);
    }
  }
  return {layers, rows};
}

}  // namespace higgs_native
