// The convolutions of the audio tokenizer, and the kernel of those with few rows, in float32 (matrix_convolution.h has
// that of the others).
//
// Rows of weights [rows, channels, taps] times columns of an input [channels, time]; tap k reads the column k *
// dilation further on. (A transposed convolution has a row for each phase of each output channel.) Threads: a block
// takes a tile of rows and columns, a lane of its warps every 32nd column, so that a warp shares each weight; sums stay
// in registers. Weights and inputs of some channels are copied to shared memory while those before are multiplied;
// Snake is applied there, once per value. A sum runs over the channels, and for each over its taps, whatever the tile:
// a column's bits do not depend on how the result is divided.
// Bytes: weights once for every tile of columns, inputs once for every tile of rows, from L2; the work is bound by
// multiply-adds.
#pragma once

#include <algorithm>

#include "cuda/audio_tokenizer/snake.h"

namespace higgs_native::cuda {

namespace {

// The shared memory of a block on every architecture.
constexpr int64_t kMaxSharedBytes = 96 << 10;

// sum[row][i] = sum over channels c and taps k of weight[row][c][k] * x[c][begin + i + k * dilation], for i < count; x
// is zero outside its time. Row c * stride + phase, column i of the sums is column i * stride + phase + shift of output
// channel c; columns outside `out` are dropped.
struct Convolution {
  const float* x;       // [batch, channels, time], channels `x_stride` apart
  const float* alpha;   // [channels]: slopes of a Snake before the convolution, or null
  const float* weight;  // [rows, channels, taps]
  int64_t channels, time, x_stride, rows, taps, dilation, begin, count;

  float* out;                 // [batch, rows / stride, columns], channels `out_stride` apart
  const float* bias;          // [rows / stride]
  const float* output_alpha;  // [rows / stride]: slopes of a Snake after the convolution, or null
  const float* residual;      // added last: [batch, rows / stride, residual_stride], or null
  int64_t columns, out_stride, residual_stride, stride, shift;

  int64_t reach() const { return (taps - 1) * dilation; }
};

// Where a row's sums go.
struct ConvolutionRow {
  int64_t channel, phase, at;

  __device__ __forceinline__ ConvolutionRow(const Convolution& args, int64_t item, int64_t row) {
    const auto of_output = static_cast<unsigned>(row), stride = static_cast<unsigned>(args.stride);
    channel = of_output / stride;
    phase = of_output % stride;
    at = item * (static_cast<unsigned>(args.rows) / stride) + channel;
  }

  __device__ __forceinline__ void write(const Convolution& args, int64_t i, float sum) const {
    const int64_t column = i * args.stride + phase + args.shift;
    if (i >= args.count || column < 0 || column >= args.columns) return;
    float value = sum + args.bias[channel];
    if (args.output_alpha) value = SnakeSlope(args.output_alpha[channel])(value);
    if (args.residual) value += args.residual[at * args.residual_stride + column];
    args.out[at * args.out_stride + column] = value;
  }
};

template <int kWarpsOfBlock, int kRowsOfThread, int kColumnsOfThread>
struct Tile {
  static constexpr int kWarps = kWarpsOfBlock, kThreads = kWarps * kWarp;
  static constexpr int kThreadRows = kRowsOfThread, kRows = kWarps * kThreadRows;
  static constexpr int kThreadColumns = kColumnsOfThread, kColumns = kWarp * kThreadColumns;
  // Floats per step of weights in shared memory: 4 of padding, so that 8 steps of 4 rows are written without bank
  // conflicts.
  static constexpr int kWeightStride = kRows + 4;
};

// Neighboring values of shared memory, 4 per read if they are a multiple of 4.
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

// One stage in shared memory: a step [kWeightStride] of weights per channel and tap, then the input [channels, width].
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

// Calls f(channel, column) for a stage's inputs; an input belongs to the same thread in every call.
template <typename T, typename F>
__device__ __forceinline__ void for_inputs(int channels, int width, const F& f) {
  const int lane = threadIdx.x % kWarp, pieces = (width + kWarp - 1) / kWarp;
  for (int i = threadIdx.x / kWarp; i < channels * pieces; i += T::kWarps) {
    const int channel = i / pieces, column = i % pieces * kWarp + lane;
    if (column < width) f(channel, column);
  }
}

// kTaps: the number of taps, or 0 if it is known at run time only.
template <typename T, int kTaps>
__global__ void __launch_bounds__(T::kThreads, 2) convolve_kernel(Convolution args, int tiles, int stage_channels) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int taps = kTaps ? kTaps : static_cast<int>(args.taps), dilation = static_cast<int>(args.dilation);
  const int width = T::kColumns + (taps - 1) * dilation;
  const int64_t item = blockIdx.x / tiles, first_column = static_cast<int64_t>(blockIdx.x % tiles) * T::kColumns;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * T::kRows;
  const float* x = args.x + item * args.channels * args.x_stride;
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
      copy_async(
          stage.inputs + channel * width + column, x + (c0 + channel) * args.x_stride + t, t >= 0 && t < args.time);
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
    // All threads see this stage, and none reads the one before, whose memory the next stage takes.
    __syncthreads();
    const int64_t next = c + stage_channels;
    if (next < args.channels) load(Stage<T>(index ^ 1, stage_channels, taps, width), next, channels_from(next));
    multiply(stage, channels_from(c));
  }

#pragma unroll
  for (int r = 0; r < T::kThreadRows; ++r) {
    const int64_t row = first_row + warp * T::kThreadRows + r;
    if (row >= args.rows) break;
    const ConvolutionRow to(args, item, row);
#pragma unroll
    for (int j = 0; j < T::kThreadColumns; ++j) to.write(args, first_column + j * kWarp + lane, sums[r][j]);
  }
}

template <typename T, int kTaps>
void launch_tiles(const Launch& launch, const Convolution& args, int64_t batch) {
  constexpr int64_t kSteps = 32, kStages = 2;
  const int64_t width = T::kColumns + args.reach();
  const int64_t stage_channels =
      std::min<int64_t>(args.channels, std::max<int64_t>(1, std::min(kSteps / args.taps, 2048 / width)));
  const size_t bytes = kStages * Stage<T>::bytes(stage_channels, args.taps, width);
  HIGGS_CHECK(
      bytes <= kMaxSharedBytes, launch.op(), ": taps and dilation must fit ", kMaxSharedBytes,
      " bytes of a block's shared memory on CUDA, got ", args.taps, " and ", args.dilation, ", which take ", bytes);
  const int64_t tiles = ceil_div(args.count, T::kColumns);
  const dim3 grid(static_cast<unsigned>(tiles * batch), static_cast<unsigned>(ceil_div(args.rows, T::kRows)));
  launch(
      convolve_kernel<T, kTaps>, grid, T::kThreads, bytes, args, static_cast<int>(tiles),
      static_cast<int>(stage_channels));
}

using ShortTile = Tile<8, 4, 1>;   // for more rows, if the stages of matrix_convolution.h would not fit
using SingleTile = Tile<8, 1, 4>;  // for the one channel of the audio

void convolve_by_rows(const Launch& launch, const Convolution& args, int64_t batch) {
  if (args.rows > SingleTile::kRows) launch_tiles<ShortTile, 0>(launch, args, batch);
  else if (args.taps == 7) launch_tiles<SingleTile, 7>(launch, args, batch);
  else launch_tiles<SingleTile, 0>(launch, args, batch);
}

}  // namespace

}  // namespace higgs_native::cuda
