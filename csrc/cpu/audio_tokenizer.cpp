// The networks of the audio tokenizer: Snake, the residual unit (two convolutions and two Snakes), the upsampling
// transposed convolution, and the residual quantizer. All are [batch, channels, time].
//
// A thread takes tiles of consecutive columns (times). It copies the tile and the columns that its taps reach into a
// buffer, applying Snake, and convolves from there, so that activations pass through memory once per operator. Buffers
// and weights of a block stay in the caches; the work is bound by multiply-adds.
//
// A convolution computes columns `first` to `first` + columns of its result: a stream already has the columns before
// them, and does not have the input of those after them yet. A column's bits do not depend on where tiles begin.
#include "args/audio_tokenizer.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/audio_tokenizer.h"
#include "cpu/audio_tokenizer_kernels.h"
#include "cpu/linear.h"

namespace higgs_native::cpu {

namespace {

constexpr int64_t kTileFloats = 32768;  // channels times columns of a tile: a quarter of a common L2
constexpr int64_t kMinColumns = 48;
constexpr int64_t kUpsampledChannels = 4;  // output channels of a transposed convolution per pass
constexpr int64_t kConvolvedRows = 16;     // output channels of a convolution per pass
constexpr int64_t kFrames = 32;            // frames that the quantizer encodes per pass

int64_t whole_columns(int64_t columns) { return ceil_div(columns, kColumns) * kColumns; }

// Columns of a tile: it fits the cache, and all threads get the same number of tiles.
int64_t tile_columns(int64_t channels, int64_t columns, int64_t batch) {
  const int64_t threads = num_threads();
  const int64_t max_columns = std::max(kTileFloats / channels, kMinColumns);
  const int64_t tiles = ceil_div(ceil_div(columns, max_columns) * batch, threads) * threads;
  return whole_columns(std::max(ceil_div(columns, ceil_div(tiles, batch)), kMinColumns / 3));
}

// Threads that share a tile by its output channels: more than one if there are few tiles.
int64_t parts_of_tile(int64_t tiles, int64_t blocks) {
  const int64_t threads = num_threads();
  return std::min(blocks, ceil_div(threads, std::min(tiles, threads)));
}

// buffer[c][i] = snake(x[c][begin + i]) for 0 <= i < count, zero outside x [channels, time].
void load_snake(
    float* buffer, int64_t stride, const float* x, int64_t x_stride, int64_t channels, int64_t time, const float* alpha,
    int64_t begin, int64_t count) {
  const int64_t first = std::clamp<int64_t>(-begin, 0, count), last = std::clamp<int64_t>(time - begin, first, count);
  for (int64_t c = 0; c < channels; ++c) {
    float* row = buffer + c * stride;
    std::fill(row, row + first, 0.f);
    audio_tokenizer_kernels().snake(row + first, x + c * x_stride + begin + first, alpha[c], last - first);
    std::fill(row + last, row + count, 0.f);
  }
}

void snake(const Snake& args) {
  for_ranges(args.batch * args.channels, 4 * args.time, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      audio_tokenizer_kernels().snake(
          args.out + row * args.out_stride, args.x + row * args.x_stride, args.alpha[row % args.channels], args.time);
    }
  });
}

void residual_unit(const ResidualUnit& args) {
  if (args.is_empty()) return;
  const int64_t batch = args.batch, channels = args.channels, time = args.time, taps = args.taps;
  const int64_t dilation = args.dilation, first = args.first, out_time = args.columns;
  const int64_t x_stride = args.x_stride, out_stride = args.out_stride;

  const int64_t reach = (taps - 1) * dilation;
  const int64_t width = tile_columns(channels, out_time, batch), tiles = ceil_div(out_time, width);
  for_ranges(batch * tiles, channels * channels * (taps + 1) * width, [&](int64_t begin, int64_t end) {
    struct Input;
    struct Middle;
    const int64_t input_stride = width + reach;
    float* input = scratch<Input>(channels * input_stride);
    float* middle = scratch<Middle>(channels * width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t t = task % tiles * width, count = std::min(width, out_time - t), columns = whole_columns(count);
      const float* source = args.x + task / tiles * channels * x_stride;
      float* target = args.out + task / tiles * channels * out_stride;
      load_snake(
          input, input_stride, source, x_stride, channels, time, args.alpha1, first + t - reach / 2, columns + reach);
      for (int64_t c = 0; c < channels; ++c) std::fill_n(middle + c * width, columns, args.bias1[c]);
      audio_tokenizer_kernels().convolve(
          {middle, width, input, input_stride, args.weight1, channels, channels, taps, dilation, columns});
      // The input is no longer needed: its buffer takes the output, which starts at x + bias.
      float* output = input;
      for (int64_t c = 0; c < channels; ++c) {
        audio_tokenizer_kernels().snake(middle + c * width, middle + c * width, args.alpha2[c], columns);
        float* row = output + c * width;
        const float* added = source + c * x_stride + first + t;
        for (int64_t i = 0; i < count; ++i) row[i] = added[i] + args.bias2[c];
        std::fill(row + count, row + columns, 0.f);
      }
      audio_tokenizer_kernels().convolve(
          {output, width, middle, width, args.weight2, channels, channels, 1, 1, columns});
      for (int64_t c = 0; c < channels; ++c) {
        std::memcpy(target + c * out_stride + t, output + c * width, count * sizeof(float));
      }
    }
  });
}

void snake_conv_transpose1d(const SnakeConvTranspose1d& args) {
  if (args.is_empty()) return;
  const int64_t batch = args.batch, in_channels = args.in_channels, out_channels = args.out_channels;
  const int64_t time = args.time, stride = args.stride, length = args.columns, padding = args.padding();
  const int64_t x_stride = args.x_stride, out_stride = args.out_stride;
  // Columns outside `out` are dropped.
  const int64_t first_u = args.first_u(), positions = args.last_u() - first_u + 1, end_u = first_u + positions;
  const int64_t width = whole_columns(std::min(std::max(kTileFloats / in_channels, kMinColumns), positions));
  const int64_t tiles = ceil_div(positions, width);
  // Threads that share a tile each load its input.
  const int64_t blocks = ceil_div(out_channels, kUpsampledChannels);
  const int64_t parts = parts_of_tile(batch * tiles, blocks);
  const int64_t cost = in_channels * 2 * stride * out_channels * width / parts;
  for_ranges(batch * tiles * parts, cost, [&](int64_t begin, int64_t end) {
    struct Input;
    struct Phases;
    const int64_t input_stride = width + 1;
    float* input = scratch<Input>(in_channels * input_stride);
    float* phases = scratch<Phases>(kUpsampledChannels * stride * width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts, tile = task / parts % tiles, item = task / parts / tiles;
      const int64_t u = first_u + tile * width, count = std::min(width, end_u - u), columns = whole_columns(count);
      load_snake(
          input, input_stride, args.x + item * in_channels * x_stride, x_stride, in_channels, time, args.alpha, u - 1,
          columns + 1);
      const int64_t last = std::min(out_channels, (part + 1) * blocks / parts * kUpsampledChannels);
      for (int64_t c = part * blocks / parts * kUpsampledChannels; c < last; c += kUpsampledChannels) {
        const int64_t channels = std::min(kUpsampledChannels, last - c), rows = channels * stride;
        for (int64_t row = 0; row < rows; ++row) {
          std::fill_n(phases + row * width, columns, args.bias[c + row / stride]);
        }
        audio_tokenizer_kernels().convolve(
            {phases, width, input, input_stride, args.weight + c * stride * in_channels * 2, rows, in_channels, 2, 1,
             columns});
        for (int64_t row = 0; row < rows; ++row) {
          const int64_t phase = row % stride;
          float* target = args.out + (item * out_channels + c + row / stride) * out_stride;
          // The column of `out` for u = 0 of this phase; negative if it is before `out`.
          const int64_t shift = phase - padding - args.first;
          const int64_t begin_i = std::max<int64_t>(ceil_div(std::max<int64_t>(-shift, 0), stride) - u, 0);
          const int64_t end_i = std::min(ceil_div(std::max<int64_t>(length - shift, 0), stride) - u, count);
          for (int64_t i = begin_i; i < end_i; ++i) target[(u + i) * stride + shift] = phases[row * width + i];
        }
      }
    }
  });
}

void conv1d(const Conv1d& args) {
  if (args.is_empty()) return;
  const int64_t batch = args.batch, in_channels = args.in_channels, out_channels = args.out_channels;
  const int64_t time = args.time, taps = args.taps, length = args.columns;

  const int64_t width = tile_columns(in_channels, length, batch), tiles = ceil_div(length, width);
  const int64_t blocks = ceil_div(out_channels, kConvolvedRows), parts = parts_of_tile(batch * tiles, blocks);
  for_ranges(batch * tiles * parts, in_channels * taps * out_channels * width / parts, [&](int64_t begin, int64_t end) {
    struct Input;
    struct Output;
    const int64_t input_stride = width + taps - 1;
    float* input = scratch<Input>(in_channels * input_stride);
    float* output = scratch<Output>(kConvolvedRows * width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts, tile = task / parts % tiles, item = task / parts / tiles;
      const int64_t t = tile * width, count = std::min(width, length - t), columns = whole_columns(count);
      const int64_t reach = columns + taps - 1, at = args.first + t - taps / 2;
      const int64_t begin_i = std::clamp<int64_t>(-at, 0, reach);
      const int64_t end_i = std::clamp<int64_t>(time - at, begin_i, reach);
      for (int64_t c = 0; c < in_channels; ++c) {
        float* row = input + c * input_stride;
        const float* source = args.x + (item * in_channels + c) * args.x_stride + at;
        std::fill(row, row + begin_i, 0.f);
        std::copy(source + begin_i, source + end_i, row + begin_i);
        std::fill(row + end_i, row + reach, 0.f);
      }
      const int64_t last = std::min(out_channels, (part + 1) * blocks / parts * kConvolvedRows);
      for (int64_t c = part * blocks / parts * kConvolvedRows; c < last; c += kConvolvedRows) {
        const int64_t rows = std::min(kConvolvedRows, last - c);
        for (int64_t row = 0; row < rows; ++row) std::fill_n(output + row * width, columns, args.bias[c + row]);
        audio_tokenizer_kernels().convolve(
            {output, width, input, input_stride, args.weight + c * in_channels * taps, rows, in_channels, taps, 1,
             columns});
        for (int64_t row = 0; row < rows; ++row) {
          std::copy_n(output + row * width, count, args.out + (item * out_channels + c + row) * args.out_stride + t);
        }
      }
    }
  });
}

void snake_cpu(const Tensor& out, const Tensor& x, const Tensor& alpha) { snake(check_snake(out, x, alpha)); }

void conv1d_cpu(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t first) {
  conv1d(check_conv1d(out, x, weight, bias, first));
}

void residual_unit_cpu(
    const Tensor& out, const Tensor& x, const Tensor& alpha1, const Tensor& weight1, const Tensor& bias1,
    const Tensor& alpha2, const Tensor& weight2, const Tensor& bias2, int64_t dilation, int64_t first) {
  residual_unit(check_residual_unit(out, x, alpha1, weight1, bias1, alpha2, weight2, bias2, dilation, first));
}

void snake_conv_transpose1d_cpu(
    const Tensor& out, const Tensor& x, const Tensor& alpha, const Tensor& weight, const Tensor& bias, int64_t first) {
  snake_conv_transpose1d(check_snake_conv_transpose1d(out, x, alpha, weight, bias, first));
}

struct Layers {
  static void snake(const Snake& args) { cpu::snake(args); }
  static void conv1d(const Conv1d& args) { cpu::conv1d(args); }
  static void residual_unit(const ResidualUnit& args) { cpu::residual_unit(args); }
  static void snake_conv_transpose1d(const SnakeConvTranspose1d& args) { cpu::snake_conv_transpose1d(args); }

  static float* activations(int index, int64_t size) {
    struct Even;
    struct Odd;
    return index == 0 ? scratch<Even>(size) : scratch<Odd>(size);
  }

  static void copy_columns(
      float* to, int64_t to_stride, const float* from, int64_t from_stride, int64_t from_step, int64_t channels,
      int64_t columns) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < columns; ++i) to[c * to_stride + i] = from[c * from_stride + i * from_step];
    }
  }
};

void acoustic_decoder_cpu(
    const Tensor& audio, const Tensor& state, const Tensor& latent, std::vector<Tensor> weights,
    std::vector<int64_t> dilations, int64_t frames_before, bool is_last) {
  run_acoustic_decoder(
      Layers(), check_acoustic_decoder(audio, state, latent, weights, dilations, frames_before, is_last));
}

void rvq_encode_cpu(
    const Tensor& codes, const Tensor& embeddings, const Tensor& codebooks, const Tensor& in_weight,
    const Tensor& in_bias, const Tensor& out_weight, const Tensor& out_bias) {
  const RvqEncode args = check_rvq_encode(codes, embeddings, codebooks, in_weight, in_bias, out_weight, out_bias);
  if (codes.numel() == 0) return;
  const int64_t levels = args.levels, frames = args.frames, entries = args.entries, dim = args.dim, width = args.width;

  std::vector<float> norms(levels * entries);
  for (int64_t i = 0; i < levels * entries; ++i) {
    for (int64_t j = 0; j < dim; ++j) norms[i] += args.codebooks[i * dim + j] * args.codebooks[i * dim + j];
  }
  // Every level's three matrices, packed. This takes little of the time of encoding audio.
  const int64_t in_bytes = packed_f32_bytes(dim, width), book_bytes = packed_f32_bytes(entries, dim);
  const int64_t out_bytes = packed_f32_bytes(width, dim), level_bytes = in_bytes + book_bytes + out_bytes;
  std::vector<char> packed(levels * level_bytes);
  for (int64_t level = 0; level < levels; ++level) {
    char* at = packed.data() + level * level_bytes;
    pack_f32(at, args.in_weight + level * dim * width, dim, width);
    pack_f32(at + in_bytes, args.codebooks + level * entries * dim, entries, dim);
    pack_f32(at + in_bytes + book_bytes, args.out_weight + level * width * dim, width, dim);
  }
  auto multiply = [](float* result, const float* rows, const char* weight, int64_t count, int64_t n, int64_t k) {
    const PackedWeight matrix = {WeightFormat::f32, weight, nullptr, n, k, k};
    struct Activations;
    const char* x = pack_activations_here<Activations>(matrix, rows, count);
    gemm_panels(result, n, matrix, 0, ceil_div(n, kPanel), x, count);
  };
  for_ranges(ceil_div(frames, kFrames), kFrames * levels * entries * dim, [&](int64_t begin, int64_t end) {
    struct Memory;
    float* residual = scratch<Memory>(kFrames * (2 * width + 2 * dim + entries));
    float* quantized = residual + kFrames * width;
    float* projected = quantized + kFrames * width;
    float* chosen = projected + kFrames * dim;
    float* products = chosen + kFrames * dim;
    for (int64_t t0 = begin * kFrames; t0 < std::min(frames, end * kFrames); t0 += kFrames) {
      const int64_t count = std::min(kFrames, frames - t0);
      std::copy_n(args.embeddings + t0 * width, count * width, residual);
      for (int64_t level = 0; level < levels; ++level) {
        const float* book = args.codebooks + level * entries * dim;
        const char* matrices = packed.data() + level * level_bytes;
        multiply(projected, residual, matrices, count, dim, width);
        for (int64_t i = 0; i < count * dim; ++i) projected[i] += args.in_bias[level * dim + i % dim];
        multiply(products, projected, matrices + in_bytes, count, entries, dim);
        for (int64_t t = 0; t < count; ++t) {
          float square = 0;
          for (int64_t j = 0; j < dim; ++j) square += projected[t * dim + j] * projected[t * dim + j];
          // |x - e|^2 in the order of both public implementations; the first of equal entries.
          int64_t best = 0;
          float best_distance = 0;
          for (int64_t n = 0; n < entries; ++n) {
            const float distance = square - 2 * products[t * entries + n] + norms[level * entries + n];
            if (n == 0 || distance < best_distance) {
              best = n;
              best_distance = distance;
            }
          }
          args.codes[level * frames + t0 + t] = static_cast<int32_t>(best);
          std::copy_n(book + best * dim, dim, chosen + t * dim);
        }
        multiply(quantized, chosen, matrices + in_bytes + book_bytes, count, width, dim);
        for (int64_t i = 0; i < count * width; ++i)
          residual[i] -= quantized[i] + args.out_bias[level * width + i % width];
      }
    }
  });
}

void rvq_decode_cpu(const Tensor& out, const Tensor& codes, const Tensor& table, const Tensor& bias) {
  const RvqDecode args = check_rvq_decode(out, codes, table, bias);
  const int64_t levels = args.levels, frames = args.frames, width = args.width;
  for (int64_t i = 0; i < levels * frames; ++i) {
    HIGGS_CHECK(
        args.codes[i] >= 0 && args.codes[i] < args.entries, "rvq_decode: codes[", i / frames, ", ", i % frames,
        "] must be between 0 and ", args.entries - 1, ", got ", args.codes[i]);
  }
  for_ranges(frames, levels * width, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* sum = args.out + t * width;
      std::copy_n(args.bias, width, sum);
      for (int64_t level = 0; level < levels; ++level) {
        const float* row = args.table + (level * args.entries + args.codes[level * frames + t]) * width;
        for (int64_t i = 0; i < width; ++i) sum[i] += row[i];
      }
    }
  });
}

}  // namespace

}  // namespace higgs_native::cpu

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) {
  m.impl("snake", TORCH_BOX(&higgs_native::cpu::snake_cpu));
  m.impl("conv1d", TORCH_BOX(&higgs_native::cpu::conv1d_cpu));
  m.impl("residual_unit", TORCH_BOX(&higgs_native::cpu::residual_unit_cpu));
  m.impl("snake_conv_transpose1d", TORCH_BOX(&higgs_native::cpu::snake_conv_transpose1d_cpu));
  m.impl("acoustic_decoder", TORCH_BOX(&higgs_native::cpu::acoustic_decoder_cpu));
  m.impl("rvq_encode", TORCH_BOX(&higgs_native::cpu::rvq_encode_cpu));
  m.impl("rvq_decode", TORCH_BOX(&higgs_native::cpu::rvq_decode_cpu));
}
