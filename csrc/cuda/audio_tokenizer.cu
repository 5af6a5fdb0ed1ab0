// The networks of the audio tokenizer, in float32: Snake, the convolutions, and the residual vector quantizer. Their
// kernels are in audio_tokenizer/.
#include "args/audio_tokenizer.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cuda/audio_tokenizer/convolution.h"
#include "cuda/audio_tokenizer/quantizer.h"
#include "cuda/audio_tokenizer/snake.h"

namespace higgs_native::cuda {

namespace {

void snake_cuda(const Tensor& out, const Tensor& x, const Tensor& alpha) {
  const Snake args = check_snake(out, x, alpha);
  if (out.numel() == 0) return;
  const Launch launch("snake", x);
  const int64_t blocks_of_row = ceil_div(args.time, kSnakeThreads * kSnakeValues);
  launch(
      snake_kernel, dim3(static_cast<unsigned>(args.batch * args.channels * blocks_of_row)), kSnakeThreads, 0, args,
      blocks_of_row);
}

void conv1d_cuda(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t first) {
  const Conv1d args = check_conv1d(out, x, weight, bias, first);
  if (args.is_empty()) return;
  Convolution conv = {};
  conv.x = args.x;
  conv.weight = args.weight;
  conv.channels = args.in_channels;
  conv.time = args.time;
  conv.rows = args.out_channels;
  conv.taps = args.taps;
  conv.dilation = 1;
  conv.begin = first - args.taps / 2;
  conv.count = conv.columns = args.columns;
  conv.out = args.out;
  conv.bias = args.bias;
  conv.stride = 1;
  convolve(Launch("conv1d", x), "conv1d", conv, args.batch);
}

void residual_unit_cuda(
    const Tensor& out, const Tensor& x, const Tensor& alpha1, const Tensor& weight1, const Tensor& bias1,
    const Tensor& alpha2, const Tensor& weight2, const Tensor& bias2, int64_t dilation, int64_t first) {
  const char* op = "residual_unit";
  const ResidualUnit args =
      check_residual_unit(out, x, alpha1, weight1, bias1, alpha2, weight2, bias2, dilation, first);
  if (args.is_empty()) return;
  const Launch launch(op, x);
  // The second convolution needs all channels of a column, which several blocks compute.
  const Tensor between = torch::stable::new_empty(x, {args.batch, args.channels, args.columns});
  Convolution conv = {};
  conv.x = args.x;
  conv.alpha = args.alpha1;
  conv.weight = args.weight1;
  conv.channels = conv.rows = args.channels;
  conv.time = args.time;
  conv.taps = args.taps;
  conv.dilation = args.dilation;
  conv.begin = first - (args.taps - 1) * args.dilation / 2;
  conv.count = conv.columns = args.columns;
  conv.out = between.mutable_data_ptr<float>();
  conv.bias = args.bias1;
  conv.output_alpha = args.alpha2;
  conv.stride = 1;
  convolve(launch, op, conv, args.batch);

  conv.x = conv.out;
  conv.alpha = conv.output_alpha = nullptr;
  conv.weight = args.weight2;
  conv.time = args.columns;
  conv.taps = conv.dilation = 1;
  conv.begin = 0;
  conv.out = args.out;
  conv.bias = args.bias2;
  conv.residual = args.x + first;
  conv.residual_stride = args.time;
  convolve(launch, op, conv, args.batch);
}

void snake_conv_transpose1d_cuda(
    const Tensor& out, const Tensor& x, const Tensor& alpha, const Tensor& weight, const Tensor& bias, int64_t first) {
  const char* op = "snake_conv_transpose1d";
  const SnakeConvTranspose1d args = check_snake_conv_transpose1d(out, x, alpha, weight, bias, first);
  if (args.is_empty()) return;
  Convolution conv = {};
  conv.x = args.x;
  conv.alpha = args.alpha;
  conv.weight = args.weight;
  conv.channels = args.in_channels;
  conv.time = args.time;
  conv.rows = args.out_channels * args.stride;
  conv.taps = 2;
  conv.dilation = 1;
  conv.begin = args.first_u() - 1;
  conv.count = args.last_u() - args.first_u() + 1;
  conv.out = args.out;
  conv.bias = args.bias;
  conv.columns = args.columns;
  conv.stride = args.stride;
  conv.shift = args.first_u() * args.stride - args.padding() - first;
  convolve(Launch(op, x), op, conv, args.batch);
}

void rvq_encode_cuda(
    const Tensor& codes, const Tensor& embeddings, const Tensor& codebooks, const Tensor& in_weight,
    const Tensor& in_bias, const Tensor& out_weight, const Tensor& out_bias) {
  const RvqEncode args = check_rvq_encode(codes, embeddings, codebooks, in_weight, in_bias, out_weight, out_bias);
  if (codes.numel() == 0) return;
  const int64_t bytes = kFrames * (args.width + args.dim) * static_cast<int64_t>(sizeof(float));
  HIGGS_CHECK(
      bytes <= kMaxSharedBytes, "rvq_encode: embeddings and entries must together have at most ",
      kMaxSharedBytes / (kFrames * sizeof(float)), " columns on CUDA, got ", args.width, " and ", args.dim);
  const Launch launch("rvq_encode", embeddings);
  launch(rvq_encode_kernel, dim3(static_cast<unsigned>(ceil_div(args.frames, kFrames))), kEncodeThreads, bytes, args);
}

void rvq_decode_cuda(const Tensor& out, const Tensor& codes, const Tensor& table, const Tensor& bias) {
  const RvqDecode args = check_rvq_decode(out, codes, table, bias);
  if (out.numel() == 0) return;
  const Launch launch("rvq_decode", out);
  const dim3 grid(static_cast<unsigned>(args.frames), static_cast<unsigned>(ceil_div(args.width, kDecodeThreads)));
  launch(rvq_decode_kernel, grid, kDecodeThreads, 0, args);
}

}  // namespace

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY_IMPL(higgs_native, HIGGS_NATIVE_CUDA_KEY, m) {
  m.impl("snake", TORCH_BOX(&higgs_native::cuda::snake_cuda));
  m.impl("conv1d", TORCH_BOX(&higgs_native::cuda::conv1d_cuda));
  m.impl("residual_unit", TORCH_BOX(&higgs_native::cuda::residual_unit_cuda));
  m.impl("snake_conv_transpose1d", TORCH_BOX(&higgs_native::cuda::snake_conv_transpose1d_cuda));
  m.impl("rvq_encode", TORCH_BOX(&higgs_native::cuda::rvq_encode_cuda));
  m.impl("rvq_decode", TORCH_BOX(&higgs_native::cuda::rvq_decode_cuda));
}
