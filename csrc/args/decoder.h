// The checked arguments of decoder_layers.
#pragma once

#include <algorithm>
#include <vector>

#include "args/packed_weight.h"

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

// The linear operators of a layer that adapters (LoRA) add to. `factors` holds A [rank, k] and B [n, rank] of each,
// packed in one of the formats without scales, for each layer of each adapter; both are empty if the adapter leaves it
// as it is.
enum LayerLinear {
  kQkvLinear,
  kOLinear,
  kTextGateUpLinear,
  kTextDownLinear,
  kAudioGateUpLinear,
  kAudioDownLinear,
  kLayerLinears
};
inline constexpr size_t kLayerFactors = 2 * kLayerLinears;
inline constexpr size_t kMaxAdapters = 32;  // in one call

// The adapters of one linear operator of a layer: a row x with adapter i adds B_i (A_i x) to the sums.
struct LowRank {
  const Tensor* adapters = nullptr;  // [rows of the batch], int32: of each row; -1 if it has none
  const Tensor* factors = nullptr;   // of adapter 0: A, then B
  size_t stride = 0;                 // from them to those of the next adapter
  size_t count = 0;                  // of adapters

  // The factors of an operator of k columns and n rows; without data if the adapter has none. A may have fewer columns:
  // the intermediate columns of a feed-forward network are rounded up, by less than half a panel.
  PackedWeight a(size_t adapter, int64_t k) const {
    const Tensor& packed = factors[adapter * stride];
    if (packed.numel() == 0) return {};
    const int64_t columns = packed_columns("decoder_layers", "factors", packed);
    const int64_t used = k - columns < kPanel / 2 ? std::min(k, columns) : k;
    return check_packed_weight("decoder_layers", "factors", packed, "scales", {}, rank(adapter), used);
  }
  PackedWeight b(size_t adapter, int64_t n) const {
    return check_packed_weight(
        "decoder_layers", "factors", factors[adapter * stride + 1], "scales", {}, n, rank(adapter));
  }
  int64_t rank(size_t adapter) const {
    return packed_columns("decoder_layers", "factors", factors[adapter * stride + 1]);
  }
};

struct FeedForwardLowRank {
  LowRank gate_up, down;
};

struct RowRange {
  int64_t first, count;
};

struct DecoderLayers {
  size_t layers;
  int64_t rows;
  size_t num_adapters;
  RowRange kept;  // the rows whose states are wanted after the last layer

  // The rows that need more of a layer than their keys and values, out of its first `layer_rows`.
  RowRange computed_rows(size_t layer, int64_t layer_rows) const {
    if (layer + 1 < layers) return {0, layer_rows};
    const int64_t first = std::min(kept.first, layer_rows);
    return {first, std::min(kept.count, layer_rows - first)};
  }
  LowRank low_rank(
      const OptionalTensor& adapters, const std::vector<Tensor>& factors, size_t layer, LayerLinear linear) const {
    if (!adapters || num_adapters == 0) return {};
    return {&*adapters, &factors[layer * kLayerFactors + 2 * linear], layers * kLayerFactors, num_adapters};
  }
};

inline DecoderLayers check_decoder_layers(
    const Tensor& x, const Tensor& query, const Tensor& attended, const std::vector<Tensor>& key_caches,
    const std::vector<Tensor>& value_caches, const std::vector<Tensor>& weights,
    const std::vector<int64_t>& skips_audio, const Tensor& rope_table, const Tensor& page_table, const Tensor& slots,
    const Tensor& positions, const Tensor& text_positions, int64_t num_text_rows, const OptionalTensor& adapters,
    const std::vector<Tensor>& factors, int64_t first_kept, int64_t num_kept, const OptionalTensor& following) {
  const char* op = "decoder_layers";
  check_devices(
      op, {{"x", x},
           {"query", query},
           {"attended", attended},
           {"rope_table", rope_table},
           {"page_table", page_table},
           {"slots", slots},
           {"positions", positions},
           {"text_positions", text_positions},
           {"adapters", adapters},
           {"following", following}});
  check_tensor(op, "x", x, ScalarType::Float, {kAnySize, kAnySize});
  if (following) {
    const WeightFormat format = weight_format(op, "following", *following);
    check_tensor(
        op, "following", *following, following->scalar_type(), {kAnySize, kAnySize, kPanel, word_elements(format)});
  }
  const int64_t rows = x.size(0);
  check_tensor(op, "query", query, ScalarType::Float, {rows, kAnySize});
  check_tensor(op, "attended", attended, ScalarType::Float, {rows, query.size(1)});
  check_tensor(op, "slots", slots, ScalarType::Int, {rows});
  check_tensor(op, "positions", positions, ScalarType::Int, {rows});
  check_text_rows(op, num_text_rows, rows);
  HIGGS_CHECK(
      first_kept >= 0 && first_kept <= rows, op, ": first_kept must be between 0 and ", rows, ", got ", first_kept);
  HIGGS_CHECK(
      num_kept >= 0 && num_kept <= rows - first_kept, op, ": num_kept must be between 0 and ", rows - first_kept,
      ", got ", num_kept);
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
  if (adapters) check_tensor(op, "adapters", *adapters, ScalarType::Int, {rows});
  const size_t of_adapter = layers * kLayerFactors;
  const size_t num_adapters = of_adapter == 0 ? 0 : factors.size() / of_adapter;
  HIGGS_CHECK(
      factors.size() == num_adapters * of_adapter && num_adapters <= kMaxAdapters, op, ": factors must have ",
      of_adapter, " tensors for each of at most ", kMaxAdapters, " adapters, got ", factors.size());
  const Tensor* first = nullptr;
  for (size_t i = 0; i < factors.size(); ++i) {
    if (factors[i].numel() == 0) continue;
    check_device(op, "factors", i, factors[i], x);
    HIGGS_CHECK(factors[i].dim() == 4, op, ": factors[", i, "] must have 4 dimensions, got ", shape_text(factors[i]));
    const Tensor& other = factors[i ^ 1];
    HIGGS_CHECK(
        other.numel() > 0, op, ": factors[", i ^ 1, "] must not be empty beside factors[", i, "], got ",
        shape_text(other));
    if (!first) first = &factors[i];
    HIGGS_CHECK(
        factors[i].scalar_type() == first->scalar_type(), op, ": factors[", i, "] must be ",
        dtype_name(first->scalar_type()), " as those before it, got ", dtype_name(factors[i].scalar_type()));
  }
  return {layers, rows, num_adapters, {first_kept, num_kept}};
}

}  // namespace higgs_native
