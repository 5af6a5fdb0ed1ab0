// out = x + down(silu(gate(z)) * up(z)), z = rms_norm(x), for text rows and audio rows, each with its own weights.
//
// Rows are sorted: text rows, then audio rows. A panel of gate_up holds kHalfPanel rows of the gate and the same rows
// of the up projection, so that a thread multiplies the two while they are in its cache.
// Bytes moved: the weights of each segment that has rows, once for up to 240 rows (480 by tiles).
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "args/dual_ffn.h"
#include "cpu/decoder.h"
#include "cpu/low_rank.h"

namespace higgs_native::cpu {

namespace {

// Max rows between the two linear operators: bounds the scratch memory of a long prompt.
constexpr int64_t kMaxRows = 480;

// Rows [begin, end) of x and out, both [*, hidden].
void run_segment(
    float* out, const float* x, int64_t begin, int64_t end, double eps, const FeedForward& weights,
    const FeedForwardLowRank& low_rank) {
  const int64_t rows = end - begin;
  const PackedWeight &gate_up = weights.gate_up, &down = weights.down;
  const int64_t hidden = gate_up.k, intermediate = down.k;
  x += begin * hidden;
  out += begin * hidden;
  struct GateUpInput;
  struct DownInput;
  struct Activated;
  const RowNorm norm = {weights.norm, weights.norm, rows, static_cast<float>(eps)};
  const char* input = pack_activations<GateUpInput>(gate_up, x, rows, &norm);
  float* activated = scratch<Activated>(rows * intermediate);
  const int64_t panels = panels_at_once(gate_up, rows);
  const LowRankSum gate_up_added(low_rank.gate_up, x, begin, rows, gate_up.n, gate_up.k, &norm);
  for_ranges(
      gate_up.n / kPanel, kPanel * hidden * rows,
      [&](int64_t first, int64_t last) {
        struct GateUp;
        float* both = scratch<GateUp>(rows * panels * kPanel);
        for (int64_t begin = first; begin < last; begin += panels) {
          const int64_t end = std::min(begin + panels, last);
          gemm_panels(both, panels * kPanel, gate_up, begin, end, input, rows);
          gate_up_added.add(both, panels * kPanel, begin, end);
          for (int64_t row = 0; row < rows; ++row) {
            for (int64_t panel = begin; panel < end; ++panel) {
              const float* gate = both + (panels * row + panel - begin) * kPanel;
              const int64_t unit = panel * kHalfPanel, count = std::min(kHalfPanel, intermediate - unit);
              linear_kernels().silu_mul(activated + row * intermediate + unit, gate, gate + kHalfPanel, count);
            }
          }
        }
      },
      panels);
  const LowRankSum down_added(low_rank.down, activated, begin, rows, down.n, down.k);
  gemm(out, down, pack_activations<DownInput>(down, activated, rows), rows, x, &down_added);
}

void dual_ffn_registered(
    const Tensor& out, const Tensor& x, const Tensor& text_norm, const Tensor& text_gate_up,
    const OptionalTensor& text_gate_up_scales, const Tensor& text_down, const OptionalTensor& text_down_scales,
    const Tensor& audio_norm, const Tensor& audio_gate_up, const OptionalTensor& audio_gate_up_scales,
    const Tensor& audio_down, const OptionalTensor& audio_down_scales, double eps, int64_t num_text_rows) {
  dual_ffn_cpu(
      out, x, text_norm, text_gate_up, text_gate_up_scales, text_down, text_down_scales, audio_norm, audio_gate_up,
      audio_gate_up_scales, audio_down, audio_down_scales, eps, num_text_rows, {}, {});
}

}  // namespace

void dual_ffn_cpu(
    const Tensor& out, const Tensor& x, const Tensor& text_norm, const Tensor& text_gate_up,
    const OptionalTensor& text_gate_up_scales, const Tensor& text_down, const OptionalTensor& text_down_scales,
    const Tensor& audio_norm, const Tensor& audio_gate_up, const OptionalTensor& audio_gate_up_scales,
    const Tensor& audio_down, const OptionalTensor& audio_down_scales, double eps, int64_t num_text_rows,
    const FeedForwardLowRank& text_low_rank, const FeedForwardLowRank& audio_low_rank) {
  const DualFfn args = check_dual_ffn(
      out, x, text_norm, text_gate_up, text_gate_up_scales, text_down, text_down_scales, audio_norm, audio_gate_up,
      audio_gate_up_scales, audio_down, audio_down_scales, num_text_rows);
  if (out.numel() == 0) return;
  for (int64_t row = 0; row < num_text_rows; row += kMaxRows) {
    run_segment(args.out, args.x, row, std::min(row + kMaxRows, num_text_rows), eps, args.text, text_low_rank);
  }
  for (int64_t row = num_text_rows; row < args.rows; row += kMaxRows) {
    run_segment(args.out, args.x, row, std::min(row + kMaxRows, args.rows), eps, args.audio, audio_low_rank);
  }
}

}  // namespace higgs_native::cpu

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) {
  m.impl("dual_ffn", TORCH_BOX(&higgs_native::cpu::dual_ffn_registered));
}
