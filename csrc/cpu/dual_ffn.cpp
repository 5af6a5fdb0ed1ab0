// out = x + down(silu(gate(z)) * up(z)), z = rms_norm(x), for text rows and audio rows, each with its own weights.
//
// Rows are sorted: text rows, then audio rows. gate_up is [2 * intermediate, hidden], the gate's rows first; a thread
// takes a run of intermediate units and computes their gate and up rows, so their product never leaves its cache.
// Bytes moved: the weights of the segments that hold rows, once for up to 96 rows each.
#include <torch/csrc/stable/library.h>

#include "common/checks.h"
#include "cpu/linear.h"

namespace higgs_native::cpu {

namespace {

constexpr int64_t kPiece = 16;  // units, or weight rows, that a thread takes at a time

struct Segment {
  const Tensor& norm;
  const Tensor& gate_up;
  const Tensor& down;
  int64_t begin, end;
};

void run_segment(float* out, const float* x, int64_t hidden, double eps, const Segment& s) {
  const int64_t rows = s.end - s.begin;
  if (rows == 0) return;
  const int64_t intermediate = s.down.size(1);
  struct Normalised;
  struct Activated;
  float* normalised = scratch<Normalised>(rows * hidden);
  float* activated = scratch<Activated>(rows * intermediate);
  rms_norm_rows(normalised, x + s.begin * hidden, s.norm, 0, rows, hidden, eps);
  with_weight_type(s.gate_up, [&](auto* weight) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(weight)>>;
    for_ranges((intermediate + kPiece - 1) / kPiece, 2 * kPiece * hidden * rows, [&](int64_t begin, int64_t end) {
      const LinearKernels& kernels = linear_kernels();
      struct Up;
      float* up = scratch<Up>(rows * kPiece);
      for (int64_t u = begin * kPiece; u < end * kPiece && u < intermediate; u += kPiece) {
        const int64_t count = intermediate - u < kPiece ? intermediate - u : kPiece;
        kernels.typed<T>().product(
            {activated + u, intermediate, normalised, weight + u * hidden, rows, count, hidden, nullptr});
        kernels.typed<T>().product(
            {up, kPiece, normalised, weight + (intermediate + u) * hidden, rows, count, hidden, nullptr});
        for (int64_t row = 0; row < rows; ++row) {
          kernels.silu_mul(activated + row * intermediate + u, up + row * kPiece, count);
        }
      }
    });
  });
  with_weight_type(s.down, [&](auto* weight) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(weight)>>;
    for_ranges((hidden + kPiece - 1) / kPiece, kPiece * intermediate * rows, [&](int64_t begin, int64_t end) {
      const int64_t n0 = begin * kPiece;
      const int64_t n1 = end * kPiece < hidden ? end * kPiece : hidden;
      linear_kernels().typed<T>().product(
          {out + s.begin * hidden + n0, hidden, activated, weight + n0 * intermediate, rows, n1 - n0, intermediate,
           x + s.begin * hidden + n0});
    });
  });
}

void dual_ffn_cpu(
    const Tensor& out, const Tensor& x, const Tensor& text_norm, const Tensor& text_gate_up, const Tensor& text_down,
    const Tensor& audio_norm, const Tensor& audio_gate_up, const Tensor& audio_down, double eps,
    int64_t num_text_rows) {
  check_tensor("dual_ffn", "x", x, ScalarType::Float, {kAnySize, kAnySize});
  const int64_t rows = x.size(0), hidden = x.size(1);
  check_tensor("dual_ffn", "out", out, ScalarType::Float, {rows, hidden});
  check_weight("dual_ffn", "text_norm", text_norm, {hidden});
  check_weight("dual_ffn", "audio_norm", audio_norm, {hidden});
  check_weight("dual_ffn", "text_down", text_down, {hidden, kAnySize});
  check_weight("dual_ffn", "audio_down", audio_down, {hidden, kAnySize});
  check_weight("dual_ffn", "text_gate_up", text_gate_up, {2 * text_down.size(1), hidden});
  check_weight("dual_ffn", "audio_gate_up", audio_gate_up, {2 * audio_down.size(1), hidden});
  check_text_rows("dual_ffn", num_text_rows, rows);
  float* to = out.mutable_data_ptr<float>();
  const float* from = x.const_data_ptr<float>();
  run_segment(to, from, hidden, eps, {text_norm, text_gate_up, text_down, 0, num_text_rows});
  run_segment(to, from, hidden, eps, {audio_norm, audio_gate_up, audio_down, num_text_rows, rows});
}

}  // namespace

}  // namespace higgs_native::cpu

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) { m.impl("dual_ffn", TORCH_BOX(&higgs_native::cpu::dual_ffn_cpu)); }
