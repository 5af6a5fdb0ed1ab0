// The checked weights of dual_ffn, for every backend.
#pragma once

#include <algorithm>
#include <string>

#include "args/packed_weight.h"

namespace higgs_native {

// A panel of gate_up holds so many rows of the gate, then those of the up projection that belong to them.
inline constexpr int64_t kHalfPanel = kPanel / 2;

struct FeedForward {
  const Tensor& norm;
  PackedWeight gate_up, down;
};

// The feed-forward path `name` (text or audio).
inline FeedForward check_feed_forward(
    const std::string& name, int64_t hidden, const Tensor& norm, const Tensor& gate_up,
    const OptionalTensor& gate_up_scales, const Tensor& down, const OptionalTensor& down_scales) {
  const char* op = "dual_ffn";
  const std::string norm_name = name + "_norm", gate_up_name = name + "_gate_up", down_name = name + "_down";
  check_weight(op, norm_name.c_str(), norm, {hidden});
  STD_TORCH_CHECK(gate_up.dim() == 4, op, ": ", gate_up_name, " must be packed, got shape ", shape_text(gate_up));
  const int64_t units = gate_up.size(0) * kHalfPanel;  // the last panel may hold fewer, and zeros
  // The depth of `down` is not stored; its last word may hold zeros too.
  STD_TORCH_CHECK(down.dim() == 4, op, ": ", down_name, " must be packed, got shape ", shape_text(down));
  const int64_t k = std::min(units, packed_columns(op, down_name.c_str(), down));
  STD_TORCH_CHECK(
      units - k < kHalfPanel, op, ": ", down_name, " must have ", units - kHalfPanel + 1, " to ", units,
      " columns, as many as ", gate_up_name, " has units, got ", k);
  return {
      norm, packed_weight(op, gate_up_name.c_str(), gate_up, gate_up_scales, 2 * units, hidden),
      packed_weight(op, down_name.c_str(), down, down_scales, hidden, k)};
}

}  // namespace higgs_native
