// Convolutions of more than 8 rows (convolution.h) on tensor cores, in convolve_matrix_kernel.
//
// Weights and inputs are split into two numbers of float16 each, the second what the first leaves, times 2^11, so that it
// has as many digits. Three of the four products are added in float32; the fourth, and what the split leaves, are 2^-22 of
// the largest. Tensor cores cut sums off where float32 rounds, so those of the large parts leave them after each 16
// channels of a tap. Weights and inputs from 65520 on give NaN.
// A block takes a tile of rows and columns, a warp a part of both. Weights and inputs of 16 channels are copied to shared
// memory as they are, while those before are multiplied, and then split there; Snake is applied in between. A sum runs
// over 16 channels at a time, and for these over the taps, whatever the tile: a column's bits do not depend on how the
// result is divided.
#pragma once

#include "cuda/audio_tokenizer/convolution.h"

namespace higgs_native::cuda {

namespace {

constexpr int kDepth = 16, kPairs = kDepth / 2;  // channels of a product
constexpr int64_t kMaxStageTaps = 8;

// A warp takes kRowTiles times 16 rows and kColumnTiles times 8 columns.
template <int kWarpsOfRows, int kWarpsOfColumns, int kRowTilesOfWarp, int kColumnTilesOfWarp>
struct MatrixTile {
  static constexpr int kRowWarps = kWarpsOfRows, kWarps = kWarpsOfRows * kWarpsOfColumns, kThreads = kWarps * kWarp;
  static constexpr int kRowTiles = kRowTilesOfWarp, kColumnTiles = kColumnTilesOfWarp;
  static constexpr int kRows = kWarpsOfRows * kRowTiles * 16, kColumns = kWarpsOfColumns * kColumnTiles * 8;
  static_assert(kRows % kWarp == 0);
};

// The shared memory of a block: floats as they were copied, and the words that they are split into. The words of a pair
// of channels are 8 banks from those of the next, so that the lanes of a fragment read different banks.
template <typename T>
struct MatrixStage {
  static constexpr int kCopiedStride = T::kRows + 4, kWeightStride = T::kRows + 8;
  float *weights, *inputs;    // [kDepth * taps][kCopiedStride], [kDepth][width]
  uint32_t* weight_words[2];  // [taps][kPairs][kWeightStride]
  uint32_t* input_words[2];   // [kPairs][input_stride]
  int input_stride;

  __device__ MatrixStage(int taps, int width) : input_stride(padded(width)) {
    weights = reinterpret_cast<float*>(dynamic_shared());
    inputs = weights + kDepth * taps * kCopiedStride;
    auto* words = reinterpret_cast<uint32_t*>(inputs + kDepth * width);
    for (int part = 0; part < 2; ++part, words += taps * kPairs * kWeightStride) weight_words[part] = words;
    for (int part = 0; part < 2; ++part, words += kPairs * input_stride) input_words[part] = words;
  }

  static __host__ __device__ constexpr int padded(int width) { return (width + 31) / 32 * 32 + 8; }

  static int64_t bytes(int64_t taps, int64_t width) {
    const int64_t copied = kDepth * (taps * kCopiedStride + width);
    return (copied + 2 * kPairs * (taps * kWeightStride + padded(static_cast<int>(width)))) * 4;
  }
};

constexpr float kSmallScale = 0x1p11f;

// Two values as words of both parts.
__device__ __forceinline__ void split(uint32_t& large, uint32_t& small, float a, float b) {
  large = pack<float16>(a, b);
  const float2 taken = unpack<float16>(large);
  small = pack<float16>((a - taken.x) * kSmallScale, (b - taken.y) * kSmallScale);
}

// `stage_taps`: taps of a stage.
template <typename T>
__global__ void __launch_bounds__(T::kThreads, 2) convolve_matrix_kernel(Convolution args, int tiles, int stage_taps) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  const int all_taps = static_cast<int>(args.taps), dilation = static_cast<int>(args.dilation);
  const int width = T::kColumns + (stage_taps - 1) * dilation;
  const int64_t item = blockIdx.x / tiles, first_column = static_cast<int64_t>(blockIdx.x % tiles) * T::kColumns;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * T::kRows;
  const float* x = args.x + item * args.channels * args.x_stride;
  const MatrixStage<T> stage(stage_taps, width);
  using S = MatrixStage<T>;

  // Copies `taps` taps from `tap` on of the channels from c0 on; zeros where there are none.
  auto copy = [&](int64_t c0, int tap, int taps) {
    const int steps = kDepth * taps;
    for (int i = warp; i < (steps + 7) / 8 * (T::kRows / 4); i += T::kWarps) {
      const int step = i / (T::kRows / 4) * 8 + lane % 8, row = i % (T::kRows / 4) * 4 + lane / 8;
      if (step >= steps) continue;
      const int64_t channel = c0 + step / taps;
      copy_async(
          stage.weights + step * S::kCopiedStride + row,
          args.weight + ((first_row + row) * args.channels + channel) * all_taps + tap + step % taps,
          first_row + row < args.rows && channel < args.channels);
    }
    const int64_t begin = args.begin + first_column + tap * dilation;
    for (int c = warp; c < kDepth; c += T::kWarps) {
      for (int column = lane; column < width; column += kWarp) {
        const int64_t time = begin + column;
        copy_async(
            stage.inputs + c * width + column, x + (c0 + c) * args.x_stride + time,
            c0 + c < args.channels && time >= 0 && time < args.time);
      }
    }
  };

  auto split_all = [&](int64_t c0, int taps) {
    for (int i = warp; i < taps * kPairs; i += T::kWarps) {
      const int tap = i / kPairs, pair = i % kPairs;
      const float* from = stage.weights + (2 * pair * taps + tap) * S::kCopiedStride;
      for (int row = lane; row < T::kRows; row += kWarp) {
        const int to = i * S::kWeightStride + row;
        split(stage.weight_words[0][to], stage.weight_words[1][to], from[row], from[taps * S::kCopiedStride + row]);
      }
    }
    for (int pair = warp; pair < kPairs; pair += T::kWarps) {
      const float* from = stage.inputs + 2 * pair * width;
      const int64_t channel = c0 + 2 * pair;
      const bool snakes[2] = {args.alpha && channel < args.channels, args.alpha && channel + 1 < args.channels};
      const SnakeSlope first(snakes[0] ? args.alpha[channel] : 0.f), second(snakes[1] ? args.alpha[channel + 1] : 0.f);
      for (int column = lane; column < width; column += kWarp) {
        const float a = from[column], b = from[width + column];
        const int to = pair * stage.input_stride + column;
        split(stage.input_words[0][to], stage.input_words[1][to], snakes[0] ? first(a) : a, snakes[1] ? second(b) : b);
      }
    }
  };

  const int row_of_warp = warp % T::kRowWarps * T::kRowTiles * 16;
  const int column_of_warp = warp / T::kRowWarps * T::kColumnTiles * 8;
  float sums[2][T::kRowTiles][T::kColumnTiles][4] = {};  // of large parts, and of large times small ones
  auto multiply = [&](int taps) {
#pragma unroll 1
    for (int tap = 0; tap < taps; ++tap) {
      uint32_t a[2][T::kRowTiles][4], b[2][T::kColumnTiles][2];
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const uint32_t* weights = stage.weight_words[part] + (tap * kPairs + t) * S::kWeightStride + row_of_warp + g;
#pragma unroll
        for (int i = 0; i < T::kRowTiles; ++i) {
          a[part][i][0] = weights[16 * i];
          a[part][i][1] = weights[16 * i + 8];
          a[part][i][2] = weights[16 * i + 4 * S::kWeightStride];
          a[part][i][3] = weights[16 * i + 8 + 4 * S::kWeightStride];
        }
        const uint32_t* inputs = stage.input_words[part] + t * stage.input_stride + column_of_warp + g + tap * dilation;
#pragma unroll
        for (int j = 0; j < T::kColumnTiles; ++j) {
          b[part][j][0] = inputs[8 * j];
          b[part][j][1] = inputs[8 * j + 4 * stage.input_stride];
        }
      }
#pragma unroll
      for (int product = 0; product < 3; ++product) {
#pragma unroll
        for (int i = 0; i < T::kRowTiles; ++i) {
#pragma unroll
          for (int j = 0; j < T::kColumnTiles; ++j) {
            if (product < 2) {
              multiply_pairs<float16>(sums[1][i][j], a[product == 0][i], b[product == 1][j]);
            } else {
              float of_tap[4] = {};
              multiply_pairs<float16>(of_tap, a[0][i], b[0][j]);
#pragma unroll
              for (int k = 0; k < 4; ++k) sums[0][i][j][k] += of_tap[k];
            }
          }
        }
      }
    }
  };

  int64_t channel = 0;
  int tap = 0;
  auto taps_from = [&](int first) { return min(stage_taps, all_taps - first); };
  copy(0, 0, taps_from(0));
  while (channel < args.channels) {
    const int taps = taps_from(tap);
    wait_for_copies();
    __syncthreads();  // all threads see the copies, and none reads the words of before
    split_all(channel, taps);
    __syncthreads();
    tap += stage_taps;
    if (tap >= all_taps) {
      tap = 0;
      channel += kDepth;
    }
    if (channel < args.channels) copy(channel, tap, taps_from(tap));
    multiply(taps);
  }

#pragma unroll
  for (int i = 0; i < T::kRowTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first_row + row_of_warp + 16 * i + 8 * half + g;
      if (row >= args.rows) continue;
      const ConvolutionRow to(args, item, row);
#pragma unroll
      for (int j = 0; j < T::kColumnTiles; ++j) {
        const int64_t column = first_column + column_of_warp + 8 * j + 2 * t;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int of_tile = 2 * half + k;
          to.write(args, column + k, fmaf(sums[1][i][j][of_tile], 1 / kSmallScale, sums[0][i][j][of_tile]));
        }
      }
    }
  }
}

using LargeMatrixTile = MatrixTile<2, 4, 2, 4>;
using FlatMatrixTile = MatrixTile<1, 4, 2, 4>;   // for the last channels
using SmallMatrixTile = MatrixTile<2, 2, 1, 2>;  // if large ones would leave most multiprocessors idle

inline int64_t stage_taps(const Convolution& args) { return std::min(args.taps, kMaxStageTaps); }

template <typename T>
int64_t matrix_bytes(const Convolution& args) {
  return MatrixStage<T>::bytes(stage_taps(args), T::kColumns + (stage_taps(args) - 1) * args.dilation);
}

// Whether the convolution has rows enough for tensor cores, and its stages fit a block's memory: the same for all
// columns, whose bits must not depend on their number.
inline bool by_matrices(const Convolution& args) {
  return args.rows > SingleTile::kRows && args.dilation < kMaxSharedBytes &&
         matrix_bytes<LargeMatrixTile>(args) <= kMaxSharedBytes;
}

template <typename T>
void launch_matrix_tiles(const Launch& launch, const Convolution& args, int64_t batch) {
  const int64_t tiles = ceil_div(args.count, T::kColumns);
  const dim3 grid(static_cast<unsigned>(tiles * batch), static_cast<unsigned>(ceil_div(args.rows, T::kRows)));
  launch(
      convolve_matrix_kernel<T>, grid, T::kThreads, static_cast<size_t>(matrix_bytes<T>(args)), args,
      static_cast<int>(tiles), static_cast<int>(stage_taps(args)));
}

void convolve(const Launch& launch, const Convolution& args, int64_t batch) {
  if (!by_matrices(args)) return convolve_by_rows(launch, args, batch);
  using Large = LargeMatrixTile;
  const int64_t tiles = ceil_div(args.count, Large::kColumns) * batch * ceil_div(args.rows, Large::kRows);
  if (2 * tiles < launch.multiprocessors()) launch_matrix_tiles<SmallMatrixTile>(launch, args, batch);
  else if (args.rows <= FlatMatrixTile::kRows) launch_matrix_tiles<FlatMatrixTile>(launch, args, batch);
  else launch_matrix_tiles<Large>(launch, args, batch);
}

}  // namespace

}  // namespace higgs_native::cuda
