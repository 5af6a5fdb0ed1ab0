// The networks of the audio tokenizer, on float32: Snake, the convolutions, and the residual vector quantizer. Their
// kernels are in audio_tokenizer/.
#include "args/audio_tokenizer.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/audio_tokenizer.h"
#include "cuda/audio_tokenizer/matrix_convolution.h"
#include "cuda/audio_tokenizer/quantizer.h"
#include "cuda/audio_tokenizer/snake.h"

namespace higgs_native::cuda {

namespace {

constexpr int kCopyThreads = 128;

// to[channel][i] = from[channel][i], where channels are a stride apart, and columns of `from` a step.
__global__ void __launch_bounds__(kCopyThreads) copy_columns_kernel(
    float* to, int64_t to_stride, const float* from, int64_t from_stride, int64_t from_step, int64_t columns) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t channel = blockIdx.y, i = static_cast<int64_t>(blockIdx.x) * kCopyThreads + threadIdx.x;
  if (i < columns) to[channel * to_stride + i] = from[channel * from_stride + i * from_step];
}

void snake(const Launch& launch, const Snake& args) {
  if (args.batch == 0 || args.channels == 0 || args.time == 0) return;
  const int64_t blocks_of_row = ceil_div(args.time, kSnakeThreads * kSnakeValues);
  launch(
      snake_kernel, dim3(static_cast<unsigned>(args.batch * args.channels * blocks_of_row)), kSnakeThreads, 0, args,
      blocks_of_row);
}

void conv1d(const Launch& launch, const Conv1d& args) {
  if (args.is_empty()) return;
  Convolution conv = {};
  conv.x = args.x;
  conv.weight = args.weight;
  conv.channels = args.in_channels;
  conv.time = args.time;
  conv.x_stride = args.x_stride;
  conv.rows = args.out_channels;
  conv.taps = args.taps;
  conv.dilation = 1;
  conv.begin = args.first - args.taps / 2;
  conv.count = conv.columns = args.columns;
  conv.out = args.out;
  conv.out_stride = args.out_stride;
  conv.bias = args.bias;
  conv.stride = 1;
  convolve(launch, conv, args.batch);
}

// `between` [batch, channels, columns] takes what the first convolution writes: the second one needs all channels of a
// column, which several blocks compute.
void residual_unit(const Launch& launch, const ResidualUnit& args, float* between) {
  if (args.is_empty()) return;
  Convolution conv = {};
  conv.x = args.x;
  conv.alpha = args.alpha1;
  conv.weight = args.weight1;
  conv.channels = conv.rows = args.channels;
  conv.time = args.time;
  conv.x_stride = args.x_stride;
  conv.taps = args.taps;
  conv.dilation = args.dilation;
  conv.begin = args.first - (args.taps - 1) * args.dilation / 2;
  conv.count = conv.columns = conv.out_stride = args.columns;
  conv.out = between;
  conv.bias = args.bias1;
  conv.output_alpha = args.alpha2;
  conv.stride = 1;
  convolve(launch, conv, args.batch);

  conv.x = between;
  conv.alpha = conv.output_alpha = nullptr;
  conv.weight = args.weight2;
  conv.time = conv.x_stride = args.columns;
  conv.taps = conv.dilation = 1;
  conv.begin = 0;
  conv.out = args.out;
  conv.out_stride = args.out_stride;
  conv.bias = args.bias2;
  conv.residual = args.x + args.first;
  conv.residual_stride = args.x_stride;
  convolve(launch, conv, args.batch);
}

void snake_conv_transpose1d(const Launch& launch, const SnakeConvTranspose1d& args) {
  if (args.is_empty()) return;
  Convolution conv = {};
  conv.x = args.x;
  conv.alpha = args.alpha;
  conv.weight = args.weight;
  conv.channels = args.in_channels;
  conv.time = args.time;
  conv.x_stride = args.x_stride;
  conv.rows = args.out_channels * args.stride;
  conv.taps = 2;
  conv.dilation = 1;
  conv.begin = args.first_u() - 1;
  conv.count = args.last_u() - args.first_u() + 1;
  conv.out = args.out;
  conv.out_stride = args.out_stride;
  conv.bias = args.bias;
  conv.columns = args.columns;
  conv.stride = args.stride;
  conv.shift = args.first_u() * args.stride - args.padding() - args.first;
  convolve(launch, conv, args.batch);
}

void snake_cuda(const Tensor& out, const Tensor& x, const Tensor& alpha) {
  const Snake args = check_snake(out, x, alpha);
  snake(Launch("snake", x), args);
}

void conv1d_cuda(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t first) {
  const Conv1d args = check_conv1d(out, x, weight, bias, first);
  conv1d(Launch("conv1d", x), args);
}

void residual_unit_cuda(
    const Tensor& out, const Tensor& x, const Tensor& alpha1, const Tensor& weight1, const Tensor& bias1,
    const Tensor& alpha2, const Tensor& weight2, const Tensor& bias2, int64_t dilation, int64_t first) {
  const ResidualUnit args =
      check_residual_unit(out, x, alpha1, weight1, bias1, alpha2, weight2, bias2, dilation, first);
  const Launch launch("residual_unit", x);
  const Tensor between = torch::stable::new_empty(x, {args.batch, args.channels, args.columns});
  residual_unit(launch, args, between.mutable_data_ptr<float>());
}

void snake_conv_transpose1d_cuda(
    const Tensor& out, const Tensor& x, const Tensor& alpha, const Tensor& weight, const Tensor& bias, int64_t first) {
  const SnakeConvTranspose1d args = check_snake_conv_transpose1d(out, x, alpha, weight, bias, first);
  snake_conv_transpose1d(Launch("snake_conv_transpose1d", x), args);
}

// The layers of the acoustic decoder. Memory is torch's: a tensor that is replaced is reused by later launches only.
class Layers {
 public:
  explicit Layers(const Tensor& latent) : launch_("acoustic_decoder", latent), latent_(latent) {}

  float* activations(int index, int64_t size) const { return allocate(activations_[index], size); }

  void copy_columns(
      float* to, int64_t to_stride, const float* from, int64_t from_stride, int64_t from_step, int64_t channels,
      int64_t columns) const {
    if (channels == 0 || columns == 0) return;
    const dim3 grid(static_cast<unsigned>(ceil_div(columns, kCopyThreads)), static_cast<unsigned>(channels));
    launch_(copy_columns_kernel, grid, kCopyThreads, 0, to, to_stride, from, from_stride, from_step, columns);
  }

  void snake(const Snake& args) const { cuda::snake(launch_, args); }
  void conv1d(const Conv1d& args) const { cuda::conv1d(launch_, args); }
  void residual_unit(const ResidualUnit& args) const {
    cuda::residual_unit(launch_, args, allocate(between_, args.channels * args.columns));
  }
  void snake_conv_transpose1d(const SnakeConvTranspose1d& args) const { cuda::snake_conv_transpose1d(launch_, args); }

 private:
  float* allocate(Tensor& memory, int64_t size) const {
    memory = torch::stable::new_empty(latent_, {size});
    return memory.mutable_data_ptr<float>();
  }

  Launch launch_;
  const Tensor& latent_;
  mutable Tensor activations_[2], between_;
};

void acoustic_decoder_cuda(
    const Tensor& audio, const Tensor& state, const Tensor& latent, std::vector<Tensor> weights,
    std::vector<int64_t> dilations, int64_t frames_before, bool is_last) {
  const AcousticDecoder args = check_acoustic_decoder(audio, state, latent, weights, dilations, frames_before, is_last);
  run_acoustic_decoder(Layers(latent), args);
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
  m.impl("acoustic_decoder", TORCH_BOX(&higgs_native::cuda::acoustic_decoder_cuda));
  m.impl("rvq_encode", TORCH_BOX(&higgs_native::cuda::rvq_encode_cuda));
  m.impl("rvq_decode", TORCH_BOX(&higgs_native::cuda::rvq_decode_cuda));
}
