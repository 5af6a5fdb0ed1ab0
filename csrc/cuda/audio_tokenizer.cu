// The networks of the audio tokenizer: Snake, the convolutions, and the residual quantizer, in float32.
//
// All three convolutions are one kernel: rows of weights [rows, channels, taps] times columns of an input [channels, time], of
// which tap k takes the one k * dilation further on. (A transposed convolution has a row for each phase of each output
// channel.) Threads: a block takes a tile of rows and columns, a lane of its warps every 32nd column, so that a weight is one
// for the whole warp; sums stay in registers. Weights and inputs of some channels at a time come to shared memory while the
// ones before are multiplied; Snake is applied there, once a value.
// A sum goes over the channels, and for each over its taps, from the first to the last, whatever the tile: a column's bits
// don't depend on how the result is divided.
// Bytes: weights once for every tile of columns, inputs once for every tile of rows, from the second cache; the work is bound
// by multiply-adds.
#include "args/audio_tokenizer.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cuda/launch.h"

namespace higgs_native::cuda {

namespace {

// What a block of any architecture can have of shared memory.
constexpr int64_t kMaxSharedBytes = 96 << 10;

// ---- Snake

// pi in three parts takes multiples of it away exactly up to the first limit. Beyond the second, sin^2 / alpha is lost beside
// x, whatever it is.
constexpr float kReducible = 20000.f, kNegligible = 134217728.f;

// sin(y)^2 has the period pi; an odd polynomial gives the sine of what is left.
__device__ __forceinline__ float sin_squared(float y) {
  float r;
  if (fabsf(y) < kReducible) {
    const float n = rintf(y * 0.318309886f);
    r = fmaf(-n, 3.140625f, y);
    r = fmaf(-n, 9.6750259399e-4f, r);
    r = fmaf(-n, 1.509958025e-7f, r);
  } else if (fabsf(y) < kNegligible) {
    const double n = rint(y * 0.31830988618379067);
    r = static_cast<float>(fma(-n, 3.1415926535897931, static_cast<double>(y)));
  } else {
    r = y * 0.f;  // NaN of what is not finite
  }
  const float z = r * r;
  float p = 2.59990315e-6f;
  p = fmaf(p, z, -1.98065478e-4f);
  p = fmaf(p, z, 8.33301619e-3f);
  p = fmaf(p, z, -1.66666567e-1f);
  const float s = fmaf(r * z, p, r);
  return s * s;
}

struct SnakeSlope {
  float alpha, inverse;

  __device__ explicit SnakeSlope(float alpha) : alpha(alpha), inverse(1 / (alpha + 1e-9f)) {}
  __device__ float operator()(float x) const { return fmaf(inverse, sin_squared(alpha * x), x); }
};

constexpr int kSnakeThreads = 256, kSnakeValues = 4;  // values of a thread

__global__ void __launch_bounds__(kSnakeThreads) snake_kernel(Snake args, int64_t blocks_of_row) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t row = blockIdx.x / blocks_of_row;
  const int64_t first = blockIdx.x % blocks_of_row * (kSnakeThreads * kSnakeValues) + threadIdx.x;
  const SnakeSlope snake(args.alpha[row % args.channels]);
#pragma unroll
  for (int i = 0; i < kSnakeValues; ++i) {
    const int64_t t = first + i * kSnakeThreads;
    if (t < args.time) args.out[row * args.time + t] = snake(args.x[row * args.time + t]);
  }
}

void snake_cuda(const Tensor& out, const Tensor& x, const Tensor& alpha) {
  const Snake args = check_snake(out, x, alpha);
  if (out.numel() == 0) return;
  const Launch launch("snake", x);
  const int64_t blocks_of_row = ceil_div(args.time, kSnakeThreads * kSnakeValues);
  launch(
      snake_kernel, dim3(static_cast<unsigned>(args.batch * args.channels * blocks_of_row)), kSnakeThreads, 0, args,
      blocks_of_row);
}

// ---- Convolutions

// sum[row][i] = sum over channels c and taps k of weight[row][c][k] * x[c][begin + i + k * dilation], for i below `count`;
// x is zero outside of its time. Row c * stride + phase, column i of the sums is column i * stride + phase + shift of output
// channel c; what lies outside of `out` is dropped.
struct Convolution {
  const float* x;       // [batch, channels, time]
  const float* alpha;   // [channels]: slopes of a Snake before the convolution, or null
  const float* weight;  // [rows, channels, taps]
  int64_t channels, time, rows, taps, dilation, begin, count;

  float* out;                 // [batch, rows / stride, columns]
  const float* bias;          // [rows / stride]
  const float* output_alpha;  // [rows / stride]: slopes of a Snake behind the convolution, or null
  const float* residual;      // added at last: [batch, rows / stride, residual_stride], or null
  int64_t columns, residual_stride, stride, shift;

  int64_t reach() const { return (taps - 1) * dilation; }
};

template <int kWarpsOfBlock, int kRowsOfThread, int kColumnsOfThread>
struct Tile {
  static constexpr int kWarps = kWarpsOfBlock, kThreads = kWarps * kWarp;
  static constexpr int kThreadRows = kRowsOfThread, kRows = kWarps * kThreadRows;
  static constexpr int kThreadColumns = kColumnsOfThread, kColumns = kWarp * kThreadColumns;
  // Rows of a step of the weights in shared memory, with what lets 8 steps of 4 rows be written at once.
  static constexpr int kWeightStride = kRows + 4;
};

// Neighbouring values of shared memory, in one read where there are 4.
template <int kCount>
__device__ __forceinline__ void load_vector(float (&to)[kCount], const float* from) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(from + i);
      to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = from[i];
  }
}

// One stage in shared memory: a step, [kWeightStride], for each channel and tap; then [channels, width] of the input.
template <typename T>
struct Stage {
  float* weights;
  float* inputs;

  __device__ Stage(int index, int stage_channels, int taps, int width) {
    const int weight_size = stage_channels * taps * T::kWeightStride;
    weights = reinterpret_cast<float*>(dynamic_shared()) + index * (weight_size + (stage_channels * width + 3) / 4 * 4);
    inputs = weights + weight_size;
  }

  static size_t bytes(int64_t stage_channels, int64_t taps, int64_t width) {
    return (stage_channels * taps * T::kWeightStride + (stage_channels * width + 3) / 4 * 4) * sizeof(float);
  }
};

// Calls f(channel, column) for a stage's inputs: each is one thread's, the same in every call.
template <typename T, typename F>
__device__ __forceinline__ void for_inputs(int channels, int width, const F& f) {
  const int lane = threadIdx.x % kWarp, pieces = (width + kWarp - 1) / kWarp;
  for (int i = threadIdx.x / kWarp; i < channels * pieces; i += T::kWarps) {
    const int channel = i / pieces, column = i % pieces * kWarp + lane;
    if (column < width) f(channel, column);
  }
}

// kTaps: the number of taps, or 0 where it is known at run time only.
template <typename T, int kTaps>
__global__ void __launch_bounds__(T::kThreads, 2) convolve_kernel(Convolution args, int tiles, int stage_channels) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int taps = kTaps ? kTaps : static_cast<int>(args.taps), dilation = static_cast<int>(args.dilation);
  const int width = T::kColumns + (taps - 1) * dilation;
  const int64_t item = blockIdx.x / tiles, first_column = static_cast<int64_t>(blockIdx.x % tiles) * T::kColumns;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * T::kRows;
  const float* x = args.x + item * args.channels * args.time;
  const int64_t begin = args.begin + first_column;

  auto load = [&](const Stage<T>& stage, int64_t c0, int channels) {
    const int steps = channels * taps;
    for (int i = warp; i < (steps + 7) / 8 * (T::kRows / 4); i += T::kWarps) {
      const int step = i / (T::kRows / 4) * 8 + lane % 8, row = i % (T::kRows / 4) * 4 + lane / 8;
      if (step >= steps) continue;
      copy_async(
          stage.weights + step * T::kWeightStride + row,
          args.weight + ((first_row + row) * args.channels + c0) * taps + step, first_row + row < args.rows);
    }
    for_inputs<T>(channels, width, [&](int channel, int column) {
      const int64_t t = begin + column;
      copy_async(stage.inputs + channel * width + column, x + (c0 + channel) * args.time + t, t >= 0 && t < args.time);
    });
  };

  float sums[T::kThreadRows][T::kThreadColumns] = {};
  auto multiply = [&](const Stage<T>& stage, int channels) {
    const float* weights = stage.weights + warp * T::kThreadRows;
    const float* inputs = stage.inputs + lane;
#pragma unroll(kTaps == 7 ? 1 : 4)
    for (int c = 0; c < channels; ++c) {
#pragma unroll
      for (int k = 0; k < taps; ++k, weights += T::kWeightStride) {
        float w[T::kThreadRows], column[T::kThreadColumns];
        load_vector(w, weights);
#pragma unroll
        for (int j = 0; j < T::kThreadColumns; ++j) column[j] = inputs[k * dilation + j * kWarp];
#pragma unroll
        for (int r = 0; r < T::kThreadRows; ++r) {
#pragma unroll
          for (int j = 0; j < T::kThreadColumns; ++j) sums[r][j] = fmaf(w[r], column[j], sums[r][j]);
        }
      }
      inputs += width;
    }
  };

  int index = 0;
  auto channels_from = [&](int64_t c) { return static_cast<int>(min(args.channels - c, int64_t{stage_channels})); };
  load(Stage<T>(index, stage_channels, taps, width), 0, channels_from(0));
  for (int64_t c = 0; c < args.channels; c += stage_channels, index ^= 1) {
    const Stage<T> stage(index, stage_channels, taps, width);
    wait_for_copies();
    if (args.alpha) {
      for_inputs<T>(channels_from(c), width, [&](int channel, int column) {
        float& value = stage.inputs[channel * width + column];
        value = SnakeSlope(args.alpha[c + channel])(value);
      });
    }
    // This stage is there for all; and all are done with the one before, whose place the next one takes.
    __syncthreads();
    const int64_t next = c + stage_channels;
    if (next < args.channels) load(Stage<T>(index ^ 1, stage_channels, taps, width), next, channels_from(next));
    multiply(stage, channels_from(c));
  }

  const auto stride = static_cast<unsigned>(args.stride), rows = static_cast<unsigned>(args.rows);
#pragma unroll
  for (int r = 0; r < T::kThreadRows; ++r) {
    const unsigned row = static_cast<unsigned>(first_row) + warp * T::kThreadRows + r;
    if (row >= rows) break;
    const unsigned channel = row / stride, phase = row % stride;
    const int64_t at = item * (rows / stride) + channel;
#pragma unroll
    for (int j = 0; j < T::kThreadColumns; ++j) {
      const int64_t i = first_column + j * kWarp + lane, column = i * args.stride + phase + args.shift;
      if (i >= args.count || column < 0 || column >= args.columns) continue;
      float value = sums[r][j] + args.bias[channel];
      if (args.output_alpha) value = SnakeSlope(args.output_alpha[channel])(value);
      if (args.residual) value += args.residual[at * args.residual_stride + column];
      args.out[at * args.columns + column] = value;
    }
  }
}

template <typename T, int kTaps>
void launch_tiles(const Launch& launch, const char* op, const Convolution& args, int64_t batch) {
  constexpr int64_t kSteps = 32, kStages = 2;
  const int64_t width = T::kColumns + args.reach();
  const int64_t stage_channels =
      std::min<int64_t>(args.channels, std::max<int64_t>(1, std::min(kSteps / args.taps, 2048 / width)));
  const size_t bytes = kStages * Stage<T>::bytes(stage_channels, args.taps, width);
  STD_TORCH_CHECK(
      bytes <= kMaxSharedBytes, op, ": taps and dilation must fit ", kMaxSharedBytes,
      " bytes of a block's shared memory on CUDA, got ", args.taps, " and ", args.dilation, ", which take ", bytes);
  const int64_t tiles = ceil_div(args.count, T::kColumns);
  const dim3 grid(static_cast<unsigned>(tiles * batch), static_cast<unsigned>(ceil_div(args.rows, T::kRows)));
  launch(
      convolve_kernel<T, kTaps>, grid, T::kThreads, bytes, args, static_cast<int>(tiles),
      static_cast<int>(stage_channels));
}

using LargeTile = Tile<8, 8, 4>;
using FlatTile = Tile<4, 8, 4>;    // for the last channels
using ShortTile = Tile<8, 4, 1>;   // where large ones would leave most multiprocessors idle
using SingleTile = Tile<8, 1, 4>;  // for the one channel that is the sound

template <int kTaps>
void launch_taps(const Launch& launch, const char* op, const Convolution& args, int64_t batch) {
  const int64_t tiles = ceil_div(args.count, LargeTile::kColumns) * batch * ceil_div(args.rows, LargeTile::kRows);
  if (args.rows <= SingleTile::kRows) launch_tiles<SingleTile, kTaps>(launch, op, args, batch);
  else if (2 * tiles < launch.multiprocessors()) launch_tiles<ShortTile, kTaps>(launch, op, args, batch);
  else if (args.rows <= FlatTile::kRows) launch_tiles<FlatTile, kTaps>(launch, op, args, batch);
  else launch_tiles<LargeTile, kTaps>(launch, op, args, batch);
}

void convolve(const Launch& launch, const char* op, const Convolution& args, int64_t batch) {
  switch (args.taps) {
    case 1: return launch_taps<1>(launch, op, args, batch);
    case 2: return launch_taps<2>(launch, op, args, batch);
    case 7: return launch_taps<7>(launch, op, args, batch);
    default: return launch_taps<0>(launch, op, args, batch);
  }
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
  // The second convolution needs all channels of a column, which several blocks make.
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

// ---- The residual quantizer

constexpr int kEncodeThreads = 512, kEncodeWarps = kEncodeThreads / kWarp;
constexpr int kFrames = 4;  // frames of a block: weights come once for all of them

// sums[f] = the sum over j of row[j] * columns[f][j], for the warp.
__device__ __forceinline__ void multiply_frames(
    float (&sums)[kFrames], const float* row, const float* const (&columns)[kFrames], int64_t size) {
#pragma unroll
  for (int f = 0; f < kFrames; ++f) sums[f] = 0;
#pragma unroll 2
  for (int64_t j = threadIdx.x % kWarp; j < size; j += kWarp) {
    const float value = row[j];
#pragma unroll
    for (int f = 0; f < kFrames; ++f) sums[f] = fmaf(value, columns[f][j], sums[f]);
  }
#pragma unroll
  for (int f = 0; f < kFrames; ++f) sums[f] = warp_sum(sums[f]);
}

// A block takes kFrames frames through all levels; a warp takes every 16th row of a matrix, or entry of a codebook.
__global__ void __launch_bounds__(kEncodeThreads) rvq_encode_kernel(RvqEncode args) {
  allow_next_launch();
  wait_for_earlier_launches();
  __shared__ float least[kEncodeWarps][kFrames];
  __shared__ int32_t nearest[kEncodeWarps][kFrames];
  const int warp = threadIdx.x / kWarp;
  const bool leads = threadIdx.x % kWarp == 0;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kFrames, dim = args.dim, width = args.width;
  float* residual = reinterpret_cast<float*>(dynamic_shared());
  float* projected = residual + kFrames * width;
  const float *residuals[kFrames], *projections[kFrames], *chosen[kFrames];
#pragma unroll
  for (int f = 0; f < kFrames; ++f) {
    residuals[f] = residual + f * width;
    projections[f] = projected + f * dim;
  }
  const int64_t values = min(args.frames - first, int64_t{kFrames}) * width;
  for (int64_t i = threadIdx.x; i < kFrames * width; i += kEncodeThreads) {
    residual[i] = i < values ? args.embeddings[first * width + i] : 0;
  }
  __syncthreads();

  float sums[kFrames];
  for (int64_t level = 0; level < args.levels; ++level) {
    for (int64_t d = warp; d < dim; d += kEncodeWarps) {
      multiply_frames(sums, args.in_weight + (level * dim + d) * width, residuals, width);
#pragma unroll
      for (int f = 0; f < kFrames; ++f) {
        if (leads) projected[f * dim + d] = sums[f] + args.in_bias[level * dim + d];
      }
    }
    __syncthreads();

    float squares[kFrames] = {}, best[kFrames];
    int32_t best_entry[kFrames] = {};
    for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp) {
#pragma unroll
      for (int f = 0; f < kFrames; ++f) squares[f] = fmaf(projections[f][d], projections[f][d], squares[f]);
    }
#pragma unroll
    for (int f = 0; f < kFrames; ++f) {
      squares[f] = warp_sum(squares[f]);
      best[f] = INFINITY;
    }
    const float* book = args.codebooks + level * args.entries * dim;
#pragma unroll 1
    for (int64_t entry = warp; entry < args.entries; entry += kEncodeWarps) {
      multiply_frames(sums, book + entry * dim, projections, dim);
      float norm = 0;
      for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp)
        norm = fmaf(book[entry * dim + d], book[entry * dim + d], norm);
      norm = warp_sum(norm);
#pragma unroll
      for (int f = 0; f < kFrames; ++f) {
        const float distance = fmaf(-2.f, sums[f], squares[f]) + norm;
        if (distance < best[f]) {
          best[f] = distance;
          best_entry[f] = static_cast<int32_t>(entry);
        }
      }
    }
#pragma unroll
    for (int f = 0; f < kFrames; ++f) {
      if (leads) {
        least[warp][f] = best[f];
        nearest[warp][f] = best_entry[f];
      }
    }
    __syncthreads();

    // Of all warps' entries the nearest, of equal ones the first; every thread finds it for itself.
#pragma unroll
    for (int f = 0; f < kFrames; ++f) {
      float distance = least[0][f];
      int32_t code = nearest[0][f];
      for (int w = 1; w < kEncodeWarps; ++w) {
        if (least[w][f] < distance || (least[w][f] == distance && nearest[w][f] < code)) {
          distance = least[w][f];
          code = nearest[w][f];
        }
      }
      chosen[f] = book + code * dim;
      if (threadIdx.x == 0 && first + f < args.frames) args.codes[level * args.frames + first + f] = code;
    }
    for (int64_t i = warp; i < width; i += kEncodeWarps) {
      multiply_frames(sums, args.out_weight + (level * width + i) * dim, chosen, dim);
#pragma unroll
      for (int f = 0; f < kFrames; ++f) {
        if (leads) residual[f * width + i] -= sums[f] + args.out_bias[level * width + i];
      }
    }
    __syncthreads();
  }
}

void rvq_encode_cuda(
    const Tensor& codes, const Tensor& embeddings, const Tensor& codebooks, const Tensor& in_weight,
    const Tensor& in_bias, const Tensor& out_weight, const Tensor& out_bias) {
  const RvqEncode args = check_rvq_encode(codes, embeddings, codebooks, in_weight, in_bias, out_weight, out_bias);
  if (codes.numel() == 0) return;
  const int64_t bytes = kFrames * (args.width + args.dim) * static_cast<int64_t>(sizeof(float));
  STD_TORCH_CHECK(
      bytes <= kMaxSharedBytes, "rvq_encode: embeddings and entries must together have at most ",
      kMaxSharedBytes / (kFrames * sizeof(float)), " columns on CUDA, got ", args.width, " and ", args.dim);
  const Launch launch("rvq_encode", embeddings);
  launch(rvq_encode_kernel, dim3(static_cast<unsigned>(ceil_div(args.frames, kFrames))), kEncodeThreads, bytes, args);
}

constexpr int kDecodeThreads = 128;

// The host can't look at the codes: a frame with one that lies outside of the table is NaN.
__global__ void __launch_bounds__(kDecodeThreads) rvq_decode_kernel(RvqDecode args) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t t = blockIdx.x, i = static_cast<int64_t>(blockIdx.y) * kDecodeThreads + threadIdx.x;
  if (i >= args.width) return;
  bool found = true;
  for (int64_t level = 0; level < args.levels; ++level) {
    const int32_t code = args.codes[level * args.frames + t];
    found &= code >= 0 && code < args.entries;
  }
  float sum = found ? args.bias[i] : NAN;
  // Without a condition inside, so that the rows are on their way at the same time.
  const int64_t levels = found ? args.levels : 0;
#pragma unroll 4
  for (int64_t level = 0; level < levels; ++level) {
    sum += args.table[(level * args.entries + args.codes[level * args.frames + t]) * args.width + i];
  }
  args.out[t * args.width + i] = sum;
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
