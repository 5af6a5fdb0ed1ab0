// All layers of the acoustic decoder in one call. Each writes right behind what the next one has kept of its input, so
// no activation is copied but the ends that are kept from call to call.
#pragma once

#include "args/audio_tokenizer.h"

namespace higgs_native {

template <typename Backend>
void run_layer(
    const Backend& backend, const AcousticLayer& layer, float* out, const float* x, int64_t time, int64_t columns,
    int64_t first, int64_t x_stride, int64_t out_stride) {
  const float* const* w = layer.weights;
  const int64_t in = layer.in_channels, out_channels = layer.out_channels;
  switch (layer.kind) {
    case AcousticLayer::kConv1d:
      return backend.conv1d(
          {out, x, w[0], w[1], 1, in, out_channels, time, layer.taps, columns, first, x_stride, out_stride});
    case AcousticLayer::kUpsampling:
      return backend.snake_conv_transpose1d(
          {out, x, w[0], w[1], w[2], 1, in, out_channels, time, layer.stride, columns, first, x_stride, out_stride});
    case AcousticLayer::kResidualUnit:
      return backend.residual_unit(
          {out, x, w[0], w[1], w[2], w[3], w[4], w[5], 1, in, time, layer.taps, layer.dilation, columns, first,
           x_stride, out_stride});
    case AcousticLayer::kSnake: return backend.snake({out, x, w[0], 1, in, columns, x_stride, out_stride});
  }
}

// The layers take `kFramesOfPass` frames at a time, so that what one layer writes is still in the cache when the next
// one reads it. A column has the same bits however the frames are divided.
inline constexpr int64_t kFramesOfPass = 32;

// `backend` has the four layers as functions of their arguments, and
// - activations(index, floats): memory that lives until the next call with this index;
// - copy_columns(to, to_stride, from, from_stride, from_step, channels, columns), where channels are a stride apart, and
//   columns of `from` a step.
template <typename Backend>
void run_acoustic_decoder(const Backend& backend, const AcousticDecoder& args) {
  float* audio = args.audio;
  for (int64_t done = 0; done < args.frames || (done == 0 && args.is_last); done += kFramesOfPass) {
    const int64_t left = args.frames - done, pass = std::min(left, kFramesOfPass);
    const bool is_last = args.is_last && pass == left;
    // Columns of the layer's input before this pass, and new ones.
    int64_t before = args.frames_before + done, columns = pass;
    float* state = args.state;
    const AcousticLayer& first_layer = args.layers.front();
    int64_t kept = std::min(first_layer.keep(), before), x_stride = kept + columns;
    float* x = backend.activations(0, first_layer.in_channels * x_stride);
    backend.copy_columns(
        x + kept, x_stride, args.latent + done * first_layer.in_channels, 1, first_layer.in_channels,
        first_layer.in_channels, columns);
    for (size_t index = 0; index < args.layers.size(); ++index) {
      const AcousticLayer& layer = args.layers[index];
      const int64_t channels = layer.in_channels, keep = layer.keep(), time = kept + columns;
      backend.copy_columns(x, x_stride, state + keep - kept, keep, 1, channels, kept);
      const int64_t begin = layer.computed(before, false), end = layer.computed(before + columns, is_last);
      const bool is_audio = index + 1 == args.layers.size();
      const int64_t next_kept = is_audio ? 0 : std::min(args.layers[index + 1].keep(), begin);
      const int64_t out_stride = next_kept + end - begin;
      float* next = is_audio ? audio : backend.activations((index + 1) % 2, layer.out_channels * out_stride);
      if (end > begin) {
        run_layer(
            backend, layer, next + next_kept, x, time, end - begin, begin - (before - kept) * layer.stride, x_stride,
            out_stride);
      }
      const int64_t now_kept = std::min(keep, time);
      backend.copy_columns(state + keep - now_kept, keep, x + time - now_kept, x_stride, 1, channels, now_kept);
      state += channels * keep;
      x = next, x_stride = out_stride, kept = next_kept, before = begin, columns = end - begin;
    }
    audio += columns;
  }
}

}  // namespace higgs_native
