// The checked arguments of the audio tokenizer's operators. Activations are [batch, channels, time].
//
// A convolution writes columns `first` to `first` + columns of its result. The channels of its input and its output are
// `x_stride` and `out_stride` floats apart.
#pragma once

#include <algorithm>
#include <vector>

#include "args/checks.h"

namespace higgs_native {

struct Snake {
  float* out;  // [batch, channels, time]; may be `x`
  const float* x;
  const float* alpha;  // [channels]
  int64_t batch, channels, time, x_stride, out_stride;
};

struct Conv1d {
  float* out;           // [batch, out_channels, columns]
  const float* x;       // [batch, in_channels, time]
  const float* weight;  // [out_channels, in_channels, taps]
  const float* bias;    // [out_channels]
  int64_t batch, in_channels, out_channels, time, taps, columns, first, x_stride, out_stride;

  bool is_empty() const { return batch == 0 || in_channels == 0 || out_channels == 0 || columns == 0; }
};

struct ResidualUnit {
  float* out;      // [batch, channels, columns]; not `x`
  const float* x;  // [batch, channels, time]
  const float* alpha1;
  const float* weight1;  // [channels, channels, taps]
  const float* bias1;
  const float* alpha2;
  const float* weight2;  // [channels, channels]
  const float* bias2;
  int64_t batch, channels, time, taps, dilation, columns, first, x_stride, out_stride;

  bool is_empty() const { return batch == 0 || channels == 0 || columns == 0; }
};

// Column u * stride + phase - padding of the result reads x[u - 1] and x[u].
struct SnakeConvTranspose1d {
  float* out;           // [batch, out_channels, columns]
  const float* x;       // [batch, in_channels, time]
  const float* alpha;   // [in_channels]
  const float* weight;  // [out_channels, stride, in_channels, 2]
  const float* bias;    // [out_channels]
  int64_t batch, in_channels, out_channels, time, stride, columns, first, x_stride, out_stride;

  bool is_empty() const { return batch == 0 || in_channels == 0 || out_channels == 0 || columns == 0; }
  int64_t padding() const { return (stride + 1) / 2; }
  // The first and the last u that `out` needs, within 0 and the input's length.
  int64_t first_u() const { return (first + padding()) / stride; }
  int64_t last_u() const { return (first + columns - 1 + padding()) / stride; }
};

struct RvqEncode {
  int32_t* codes;           // [levels, frames]
  const float* embeddings;  // [frames, width]
  const float* codebooks;   // [levels, entries, dim]
  const float* in_weight;   // [levels, dim, width]
  const float* in_bias;     // [levels, dim]
  const float* out_weight;  // [levels, width, dim]
  const float* out_bias;    // [levels, width]
  int64_t levels, frames, entries, dim, width;
};

struct RvqDecode {
  float* out;            // [frames, width]
  const int32_t* codes;  // [levels, frames]
  const float* table;    // [levels, entries, width]
  const float* bias;     // [width]
  int64_t levels, frames, entries, width;
};

// A layer of the acoustic decoder, for one audio.
struct AcousticLayer {
  enum Kind { kConv1d, kUpsampling, kResidualUnit, kSnake } kind;
  const float* weights[6];  // in the order of the layer's own operator
  int64_t in_channels, out_channels;
  int64_t taps = 1, dilation = 1, stride = 1;

  int64_t reach() const { return (taps - 1) * dilation; }
  // Input columns, the last ones, that later output columns depend on.
  int64_t keep() const { return kind == kUpsampling ? 1 : reach(); }
  // Output columns, the last ones, that depend on input columns that follow.
  int64_t lag() const { return kind == kUpsampling ? (stride + 1) / 2 : reach() / 2; }
  // Output columns that can be computed from `columns` of the input.
  int64_t computed(int64_t columns, bool is_whole) const {
    return is_whole ? columns * stride : std::max<int64_t>(columns * stride - lag(), 0);
  }
};

struct AcousticDecoder {
  float* audio;         // [samples]
  float* state;         // by layer: the end of its input [in_channels, keep()], at the right if there is less
  const float* latent;  // [frames, channels]
  std::vector<AcousticLayer> layers;
  int64_t frames, frames_before;
  bool is_last;
};

// Samples of an audio: years, so that no number of columns overflows.
inline constexpr int64_t kMaxSamples = int64_t{1} << 48;

// Columns that a convolution may reach across its taps. A thread's buffer has this many more columns than its tile.
inline constexpr int64_t kMaxReach = 1 << 16;

// Checks `out` [batch, channels, columns] against the result's `time` columns and returns its columns.
inline int64_t check_columns(
    const char* op, const Tensor& out, int64_t batch, int64_t channels, int64_t time, int64_t first) {
  check_tensor(op, "out", out, ScalarType::Float, {batch, channels, kAnySize});
  const int64_t columns = out.size(2);
  HIGGS_CHECK(columns <= time, op, ": out must have at most ", time, " columns, got ", columns);
  HIGGS_CHECK(
      first >= 0 && first <= time - columns, op, ": first must be 0 to ", time - columns, " for ", columns, " of ",
      time, " columns, got ", first);
  return columns;
}

inline Snake check_snake(const Tensor& out, const Tensor& x, const Tensor& alpha) {
  const char* op = "snake";
  check_devices(op, {{"out", out}, {"x", x}, {"alpha", alpha}});
  check_tensor(op, "x", x, ScalarType::Float, {kAnySize, kAnySize, kAnySize});
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  check_tensor(op, "alpha", alpha, ScalarType::Float, {channels});
  check_tensor(op, "out", out, ScalarType::Float, {batch, channels, time});
  return {
      out.mutable_data_ptr<float>(),
      x.const_data_ptr<float>(),
      alpha.const_data_ptr<float>(),
      batch,
      channels,
      time,
      time,
      time};
}

inline Conv1d check_conv1d(
    const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t first) {
  const char* op = "conv1d";
  check_devices(op, {{"out", out}, {"x", x}, {"weight", weight}, {"bias", bias}});
  check_tensor(op, "x", x, ScalarType::Float, {kAnySize, kAnySize, kAnySize});
  const int64_t batch = x.size(0), in_channels = x.size(1), time = x.size(2);
  check_tensor(op, "weight", weight, ScalarType::Float, {kAnySize, in_channels, kAnySize});
  const int64_t out_channels = weight.size(0), taps = weight.size(2);
  check_tensor(op, "bias", bias, ScalarType::Float, {out_channels});
  HIGGS_CHECK(taps % 2 == 1, op, ": weight must have an odd number of taps, got ", taps);
  const int64_t columns = check_columns(op, out, batch, out_channels, time, first);
  return {
      out.mutable_data_ptr<float>(),
      x.const_data_ptr<float>(),
      weight.const_data_ptr<float>(),
      bias.const_data_ptr<float>(),
      batch,
      in_channels,
      out_channels,
      time,
      taps,
      columns,
      first,
      time,
      columns};
}

inline ResidualUnit check_residual_unit(
    const Tensor& out, const Tensor& x, const Tensor& alpha1, const Tensor& weight1, const Tensor& bias1,
    const Tensor& alpha2, const Tensor& weight2, const Tensor& bias2, int64_t dilation, int64_t first) {
  const char* op = "residual_unit";
  check_devices(
      op, {{"out", out},
           {"x", x},
           {"alpha1", alpha1},
           {"weight1", weight1},
           {"bias1", bias1},
           {"alpha2", alpha2},
           {"weight2", weight2},
           {"bias2", bias2}});
  check_tensor(op, "x", x, ScalarType::Float, {kAnySize, kAnySize, kAnySize});
  const int64_t batch = x.size(0), channels = x.size(1), time = x.size(2);
  check_tensor(op, "weight1", weight1, ScalarType::Float, {channels, channels, kAnySize});
  const int64_t taps = weight1.size(2);
  check_tensor(op, "weight2", weight2, ScalarType::Float, {channels, channels, 1});
  check_tensor(op, "alpha1", alpha1, ScalarType::Float, {channels});
  check_tensor(op, "bias1", bias1, ScalarType::Float, {channels});
  check_tensor(op, "alpha2", alpha2, ScalarType::Float, {channels});
  check_tensor(op, "bias2", bias2, ScalarType::Float, {channels});
  const int64_t columns = check_columns(op, out, batch, channels, time, first);
  HIGGS_CHECK(taps % 2 == 1, op, ": weight1 must have an odd number of taps, got ", taps);
  const int64_t max_dilation = taps > 1 ? kMaxReach / (taps - 1) : kMaxReach;
  HIGGS_CHECK(
      dilation >= 1 && dilation <= max_dilation, op, ": dilation must be 1 to ", max_dilation, " for ", taps,
      " taps, got ", dilation);
  const ResidualUnit args = {
      out.mutable_data_ptr<float>(),
      x.const_data_ptr<float>(),
      alpha1.const_data_ptr<float>(),
      weight1.const_data_ptr<float>(),
      bias1.const_data_ptr<float>(),
      alpha2.const_data_ptr<float>(),
      weight2.const_data_ptr<float>(),
      bias2.const_data_ptr<float>(),
      batch,
      channels,
      time,
      taps,
      dilation,
      columns,
      first,
      time,
      columns};
  HIGGS_CHECK(
      args.is_empty() || args.x != args.out, op,
      ": out must be a tensor other than x, whose columns neighboring tiles "
      "read, got x");
  return args;
}

inline SnakeConvTranspose1d check_snake_conv_transpose1d(
    const Tensor& out, const Tensor& x, const Tensor& alpha, const Tensor& weight, const Tensor& bias, int64_t first) {
  const char* op = "snake_conv_transpose1d";
  check_devices(op, {{"out", out}, {"x", x}, {"alpha", alpha}, {"weight", weight}, {"bias", bias}});
  check_tensor(op, "x", x, ScalarType::Float, {kAnySize, kAnySize, kAnySize});
  const int64_t batch = x.size(0), in_channels = x.size(1), time = x.size(2);
  check_tensor(op, "weight", weight, ScalarType::Float, {kAnySize, kAnySize, in_channels, 2});
  const int64_t out_channels = weight.size(0), stride = weight.size(1);
  check_tensor(op, "alpha", alpha, ScalarType::Float, {in_channels});
  check_tensor(op, "bias", bias, ScalarType::Float, {out_channels});
  HIGGS_CHECK(stride >= 2, op, ": weight must have at least 2 phases, got ", stride);
  const int64_t columns = check_columns(op, out, batch, out_channels, time * stride, first);
  return {
      out.mutable_data_ptr<float>(),
      x.const_data_ptr<float>(),
      alpha.const_data_ptr<float>(),
      weight.const_data_ptr<float>(),
      bias.const_data_ptr<float>(),
      batch,
      in_channels,
      out_channels,
      time,
      stride,
      columns,
      first,
      time,
      columns};
}

inline RvqEncode check_rvq_encode(
    const Tensor& codes, const Tensor& embeddings, const Tensor& codebooks, const Tensor& in_weight,
    const Tensor& in_bias, const Tensor& out_weight, const Tensor& out_bias) {
  const char* op = "rvq_encode";
  check_devices(
      op, {{"codes", codes},
           {"embeddings", embeddings},
           {"codebooks", codebooks},
           {"in_weight", in_weight},
           {"in_bias", in_bias},
           {"out_weight", out_weight},
           {"out_bias", out_bias}});
  check_tensor(op, "embeddings", embeddings, ScalarType::Float, {kAnySize, kAnySize});
  const int64_t frames = embeddings.size(0), width = embeddings.size(1);
  check_tensor(op, "codebooks", codebooks, ScalarType::Float, {kAnySize, kAnySize, kAnySize});
  const int64_t levels = codebooks.size(0), entries = codebooks.size(1), dim = codebooks.size(2);
  check_tensor(op, "in_weight", in_weight, ScalarType::Float, {levels, dim, width});
  check_tensor(op, "in_bias", in_bias, ScalarType::Float, {levels, dim});
  check_tensor(op, "out_weight", out_weight, ScalarType::Float, {levels, width, dim});
  check_tensor(op, "out_bias", out_bias, ScalarType::Float, {levels, width});
  check_tensor(op, "codes", codes, ScalarType::Int, {levels, frames});
  HIGGS_CHECK(
      entries > 0 && dim > 0, op, ": codebooks must have at least one entry of at least one value, got ",
      shape_text(codebooks));
  return {
      codes.mutable_data_ptr<int32_t>(),
      embeddings.const_data_ptr<float>(),
      codebooks.const_data_ptr<float>(),
      in_weight.const_data_ptr<float>(),
      in_bias.const_data_ptr<float>(),
      out_weight.const_data_ptr<float>(),
      out_bias.const_data_ptr<float>(),
      levels,
      frames,
      entries,
      dim,
      width};
}

// The backend checks the codes.
inline RvqDecode check_rvq_decode(const Tensor& out, const Tensor& codes, const Tensor& table, const Tensor& bias) {
  const char* op = "rvq_decode";
  check_devices(op, {{"out", out}, {"codes", codes}, {"table", table}, {"bias", bias}});
  check_tensor(op, "codes", codes, ScalarType::Int, {kAnySize, kAnySize});
  const int64_t levels = codes.size(0), frames = codes.size(1);
  check_tensor(op, "table", table, ScalarType::Float, {levels, kAnySize, kAnySize});
  const int64_t entries = table.size(1), width = table.size(2);
  check_tensor(op, "bias", bias, ScalarType::Float, {width});
  check_tensor(op, "out", out, ScalarType::Float, {frames, width});
  return {
      out.mutable_data_ptr<float>(),
      codes.const_data_ptr<int32_t>(),
      table.const_data_ptr<float>(),
      bias.const_data_ptr<float>(),
      levels,
      frames,
      entries,
      width};
}

// `weights`: of the first convolution (weight, bias), of each block (of its transposed convolution alpha, weight and bias,
// then of each of its residual units, one per dilation, the six of `residual_unit`), of the last Snake (alpha), and of
// the last convolution.
inline AcousticDecoder check_acoustic_decoder(
    const Tensor& audio, const Tensor& state, const Tensor& latent, const std::vector<Tensor>& weights,
    const std::vector<int64_t>& dilations, int64_t frames_before, bool is_last) {
  const char* op = "acoustic_decoder";
  const size_t units = dilations.size(), of_block = 3 + 6 * units, of_ends = 5;
  HIGGS_CHECK(
      weights.size() >= of_ends && (weights.size() - of_ends) % of_block == 0, op, ": weights must hold ", of_ends,
      " tensors and ", of_block, " of each block, got ", weights.size());
  check_devices(op, {{"audio", audio}, {"state", state}, {"latent", latent}});
  check_tensor(op, "latent", latent, ScalarType::Float, {kAnySize, kAnySize});
  HIGGS_CHECK(
      frames_before >= 0 && frames_before <= kMaxSize, op, ": frames_before must be between 0 and ", kMaxSize, ", got ",
      frames_before);
  AcousticDecoder args = {nullptr, nullptr, nullptr, {}, latent.size(0), frames_before, is_last};

  size_t taken = 0;
  int64_t channels = latent.size(1);
  auto take = [&](std::initializer_list<int64_t> shape) -> const Tensor& {
    check_device(op, "weights", taken, weights[taken], latent);
    check_tensor(op, "weights", weights[taken], ScalarType::Float, shape);
    return weights[taken++];
  };
  auto check_reach = [&](const AcousticLayer& layer) {
    HIGGS_CHECK(layer.taps % 2 == 1, op, ": weights must have an odd number of taps, got ", layer.taps);
    const int64_t max_dilation = kMaxReach / std::max<int64_t>(layer.taps - 1, 1);
    HIGGS_CHECK(
        layer.dilation >= 1 && layer.dilation <= max_dilation, op, ": dilations must be 1 to ", max_dilation, " for ",
        layer.taps, " taps, got ", layer.dilation);
  };
  auto conv1d = [&](int64_t out_channels) {
    const Tensor& weight = take({out_channels, channels, kAnySize});
    AcousticLayer layer = {AcousticLayer::kConv1d, {weight.const_data_ptr<float>()}, channels, weight.size(0)};
    layer.taps = weight.size(2);
    check_reach(layer);
    channels = layer.out_channels;
    layer.weights[1] = take({channels}).const_data_ptr<float>();
    args.layers.push_back(layer);
  };
  auto upsampling = [&] {
    const Tensor& alpha = take({channels});
    const Tensor& weight = take({kAnySize, kAnySize, channels, 2});
    AcousticLayer layer = {AcousticLayer::kUpsampling, {}, channels, weight.size(0)};
    layer.stride = weight.size(1);
    HIGGS_CHECK(layer.stride >= 2, op, ": weights must have at least 2 phases, got ", layer.stride);
    channels = layer.out_channels;
    layer.weights[0] = alpha.const_data_ptr<float>(), layer.weights[1] = weight.const_data_ptr<float>();
    layer.weights[2] = take({channels}).const_data_ptr<float>();
    args.layers.push_back(layer);
  };
  auto residual_unit = [&](int64_t dilation) {
    AcousticLayer layer = {AcousticLayer::kResidualUnit, {}, channels, channels};
    layer.dilation = dilation;
    for (int i = 0; i < 6; ++i) {
      const Tensor& tensor = i % 3 == 1 ? take({channels, channels, i == 1 ? kAnySize : 1}) : take({channels});
      if (i == 1) layer.taps = tensor.size(2);
      layer.weights[i] = tensor.const_data_ptr<float>();
    }
    check_reach(layer);
    args.layers.push_back(layer);
  };
  conv1d(kAnySize);
  for (size_t block = 0; block < (weights.size() - of_ends) / of_block; ++block) {
    upsampling();
    for (const int64_t dilation : dilations) residual_unit(dilation);
  }
  args.layers.push_back({AcousticLayer::kSnake, {take({channels}).const_data_ptr<float>()}, channels, channels});
  conv1d(1);

  int64_t before = frames_before, after = frames_before + args.frames, values = 0;
  for (const AcousticLayer& layer : args.layers) {
    values += layer.in_channels * layer.keep();
    HIGGS_CHECK(
        after <= kMaxSamples / layer.stride, op, ": frames must give at most ", kMaxSamples, " samples, got ",
        args.frames, " frames after ", frames_before);
    before = layer.computed(before, false), after = layer.computed(after, is_last);
  }
  check_tensor(op, "state", state, ScalarType::Float, {values});
  check_tensor(op, "audio", audio, ScalarType::Float, {after - before});
  args.audio = audio.mutable_data_ptr<float>();
  args.state = state.mutable_data_ptr<float>();
  args.latent = latent.const_data_ptr<float>();
  return args;
}

}  // namespace higgs_native
