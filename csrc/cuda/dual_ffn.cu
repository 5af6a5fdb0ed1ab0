// out = x + down(silu(gate(z)) * up(z)), z = rms_norm(x), for text rows and audio rows, each with its own weights: two
// linear kernels (linear.cu) for each segment that has rows.
//
// Rows are sorted: text rows, then audio rows. A panel of gate_up holds kHalfPanel rows of the gate and the same rows
// of the up projection, so that the block that sums them multiplies the two.
// Bytes moved: the weights of each segment that has rows, once.
#include "args/dual_ffn.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cuda/decoder.h"
#include "cuda/linear.h"

namespace higgs_native::cuda {

namespace {

// Rows [begin, end) of x and out, both [*, hidden].
void run_segment(
    const Launch& launch, const Tensor& out, const Tensor& x, int64_t begin, int64_t end, double eps,
    const FeedForward& weights, const Tensor& packed_down, const FeedForwardLowRank& low_rank, int64_t prefetched_bytes,
    const NextWeights& next) {
  const int64_t rows = end - begin, hidden = x.size(1), intermediate = weights.down.k;
  Gemm gate_up, down;
  gate_up.weight = weights.gate_up;
  gate_up.x = x.const_data_ptr<float>() + begin * hidden;
  gate_up.rows = static_cast<int>(rows);
  gate_up.norm = row_norm(weights.norm, weights.norm, rows, eps);
  gate_up.epilogue = Epilogue::kSiluMul;
  gate_up.n_out = static_cast<int>(intermediate);
  gate_up.next = next_weights(packed_down, prefetched_bytes);
  down.weight = weights.down;
  down.rows = gate_up.rows;
  down.out = out.mutable_data_ptr<float>() + begin * hidden;
  down.residual = gate_up.x;
  down.next = next;
  // Adapters of `down` read its rows as floats.
  const bool packs = weights.gate_up.format == weights.down.format && low_rank.down.count == 0;
  const int64_t words = packs && packed_words(launch, gate_up) > 0 ? packed_words(launch, down) : 0;
  Tensor activated;
  if (words > 0) {
    activated = torch::stable::new_empty(x, {words}, ScalarType::Int);
    gate_up.packed_out = down.packed_x = static_cast<uint32_t*>(activated.mutable_data_ptr());
  } else {
    activated = torch::stable::new_empty(x, {rows, intermediate}, ScalarType::Float);
    down.x = gate_up.out = activated.mutable_data_ptr<float>();
  }
  const Tensor gate_up_added = add_low_rank(launch, gate_up, low_rank.gate_up, begin, x);
  gemm(launch, gate_up, x);
  const Tensor down_added = add_low_rank(launch, down, low_rank.down, begin, x);
  gemm(launch, down, x);
}

void dual_ffn_registered(
    const Tensor& out, const Tensor& x, const Tensor& text_norm, const Tensor& text_gate_up,
    const OptionalTensor& text_gate_up_scales, const Tensor& text_down, const OptionalTensor& text_down_scales,
    const Tensor& audio_norm, const Tensor& audio_gate_up, const OptionalTensor& audio_gate_up_scales,
    const Tensor& audio_down, const OptionalTensor& audio_down_scales, double eps, int64_t num_text_rows) {
  dual_ffn_cuda(
      out, x, text_norm, text_gate_up, text_gate_up_scales, text_down, text_down_scales, audio_norm, audio_gate_up,
      audio_gate_up_scales, audio_down, audio_down_scales, eps, num_text_rows, {}, {}, 0, {});
}

}  // namespace

void dual_ffn_cuda(
    const Tensor& out, const Tensor& x, const Tensor& text_norm, const Tensor& text_gate_up,
    const OptionalTensor& text_gate_up_scales, const Tensor& text_down, const OptionalTensor& text_down_scales,
    const Tensor& audio_norm, const Tensor& audio_gate_up, const OptionalTensor& audio_gate_up_scales,
    const Tensor& audio_down, const OptionalTensor& audio_down_scales, double eps, int64_t num_text_rows,
    const FeedForwardLowRank& text_low_rank, const FeedForwardLowRank& audio_low_rank, int64_t prefetched_bytes,
    const NextWeights& next) {
  const DualFfn args = check_dual_ffn(
      out, x, text_norm, text_gate_up, text_gate_up_scales, text_down, text_down_scales, audio_norm, audio_gate_up,
      audio_gate_up_scales, audio_down, audio_down_scales, num_text_rows);
  if (out.numel() == 0) return;
  const Launch launch("dual_ffn", out);
  const bool has_audio = num_text_rows < args.rows;
  if (num_text_rows > 0) {
    run_segment(
        launch, out, x, 0, num_text_rows, eps, args.text, text_down, text_low_rank, prefetched_bytes,
        has_audio ? NextWeights() : next);
  }
  if (has_audio) {
    run_segment(
        launch, out, x, num_text_rows, args.rows, eps, args.audio, audio_down, audio_low_rank, prefetched_bytes, next);
  }
}

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY_IMPL(higgs_native, HIGGS_NATIVE_CUDA_KEY, m) {
  m.impl("dual_ffn", TORCH_BOX(&higgs_native::cuda::dual_ffn_registered));
}
