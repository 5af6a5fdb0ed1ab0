// The inner kernels of rounding weights to integers, for one thread.
#pragma once

#include <cstdint>

#include "common/numbers.h"
#include "cpu/simd/isa.h"

namespace higgs_native::cpu {

struct QuantizationKernels {
  void (*widen_bf16)(float* out, const bfloat16* x, int64_t n);
  void (*widen_f16)(float* out, const float16* x, int64_t n);
  // The value of largest magnitude, with its sign; NaN if a value is not finite.
  float (*extreme)(const float* x, int64_t n);
  // The sum of (x - scale * q)^2, q = x / scale rounded to the nearest integer in lowest .. highest.
  double (*error)(const float* x, int64_t n, float scale, int32_t lowest, int32_t highest);
  // Writes those q.
  void (*round)(int8_t* q, const float* x, int64_t n, float scale, int32_t lowest, int32_t highest);
};

HIGGS_NATIVE_KERNEL_TABLE(QuantizationKernels, quantization_kernels)

}  // namespace higgs_native::cpu
