// The inner kernels of the audio tokenizer's networks, for one thread.
#pragma once

#include <cstdint>

#include "cpu/simd/isa.h"

namespace higgs_native::cpu {

// A tile has a multiple of this many columns: whole vectors of every instruction set.
inline constexpr int64_t kColumns = 16;

// out[row][t] += sum over c, k of weight[row][c][k] * x[c][t + k * dilation], for t < columns.
struct ConvolutionTile {
  float* out;  // [rows, columns], rows `out_stride` apart
  int64_t out_stride;
  const float* x;  // [channels, columns + (taps - 1) * dilation], rows `x_stride` apart
  int64_t x_stride;
  const float* weight;  // [rows, channels, taps], contiguous
  int64_t rows, channels, taps, dilation;
  int64_t columns;  // a multiple of kColumns
};

struct AudioTokenizerKernels {
  // out = x + sin(alpha * x)^2 / (alpha + 1e-9), n values; out may be x
  void (*snake)(float* out, const float* x, float alpha, int64_t n);
  void (*convolve)(const ConvolutionTile&);
};

HIGGS_NATIVE_KERNEL_TABLE(AudioTokenizerKernels, audio_tokenizer_kernels)

}  // namespace higgs_native::cpu
