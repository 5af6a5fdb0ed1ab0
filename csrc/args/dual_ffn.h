// The checked arguments of dual_ffn.
#pragma once

#include <algorithm>
#include <string>

#include "args/packed_weight.h"

namespace higgs_native {

// A panel of gate_up holds this many rows of the gate, then the same rows of the up projection.
inline constexpr int64_t kHalfPanel = kPanel / 2;

// The weights of one kind of row, text or audio.
struct FeedForward {
  const Tensor& norm;
  PackedWeight gate_up, down;
};

inline FeedForward check_feed_forward(
    const std::string& kind, int64_t hidden, const Tensor& norm, const Tensor& gate_up,
    const OptionalTensor& gate_up_scales, const Tensor& down, const OptionalTensor& down_scales) {
  const char* op = "dual_ffn";
  const std::string norm_name = kind + "_norm", gate_up_name = kind + "_gate_up", down_name = kind + "_down";
  check_weight(op, norm_name.c_str(), norm, {hidden});
  for (const auto& [name, packed] : {std::pair{&gate_up_name, &gate_up}, std::pair{&down_name, &down}}) {
    HIGGS_CHECK(
        packed->dim() == 4 && packed->size(0) <= kMaxSize && packed->size(1) <= kMaxSize, op, ": ", *name,
        " must have 4 dimensions of at most ", kMaxSize, ", got ", shape_text(*packed));
  }
  // The number of intermediate columns is not stored: both weights round it up, `down` by less.
  const int64_t rows = gate_up.size(0) * kHalfPanel;
  const int64_t intermediate = std::min(rows, packed_columns(op, down_name.c_str(), down));
  HIGGS_CHECK(
      rows - intermediate < kHalfPanel, op, ": ", down_name, " must have ", rows - kHalfPanel + 1, " to ", rows,
      " columns, the rows of ", gate_up_name, "'s gate, got ", intermediate);
  const std::string gate_up_scales_name = gate_up_name + "_scales", down_scales_name = down_name + "_scales";
  return {
      norm,
      check_packed_weight(
          op, gate_up_name.c_str(), gate_up, gate_up_scales_name.c_str(), gate_up_scales, 2 * rows, hidden),
      check_packed_weight(op, down_name.c_str(), down, down_scales_name.c_str(), down_scales, hidden, intermediate)};
}

struct DualFfn {
  float* out;      // [rows, hidden]; may be `x`
  const float* x;  // [rows, hidden]
  FeedForward text, audio;
  int64_t rows, hidden, num_text_rows;
};

inline DualFfn check_dual_ffn(
    const Tensor& out, const Tensor& x, const Tensor& text_norm, const Tensor& text_gate_up,
    const OptionalTensor& text_gate_up_scales, const Tensor& text_down, const OptionalTensor& text_down_scales,
    const Tensor& audio_norm, const Tensor& audio_gate_up, const OptionalTensor& audio_gate_up_scales,
    const Tensor& audio_down, const OptionalTensor& audio_down_scales, int64_t num_text_rows) {
  const char* op = "dual_ffn";
  check_devices(
      op, {{"out", out},
           {"x", x},
           {"text_norm", text_norm},
           {"text_gate_up", text_gate_up},
           {"text_gate_up_scales", text_gate_up_scales},
           {"text_down", text_down},
           {"text_down_scales", text_down_scales},
           {"audio_norm", audio_norm},
           {"audio_gate_up", audio_gate_up},
           {"audio_gate_up_scales", audio_gate_up_scales},
           {"audio_down", audio_down},
           {"audio_down_scales", audio_down_scales}});
  check_tensor(op, "x", x, ScalarType::Float, {kAnySize, kAnySize});
  const int64_t rows = x.size(0), hidden = x.size(1);
  check_tensor(op, "out", out, ScalarType::Float, {rows, hidden});
  const FeedForward text =
      check_feed_forward("text", hidden, text_norm, text_gate_up, text_gate_up_scales, text_down, text_down_scales);
  const FeedForward audio = check_feed_forward(
      "audio", hidden, audio_norm, audio_gate_up, audio_gate_up_scales, audio_down, audio_down_scales);
  check_text_rows(op, num_text_rows, rows);
  return {out.mutable_data_ptr<float>(), x.const_data_ptr<float>(), text, audio, rows, hidden, num_text_rows};
}

}  // namespace higgs_native
