// Rounding to the nearest multiple of a scale within limits, and its error.
#include "cpu/quantization_kernels.h"

#include "cpu/simd/simd.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

namespace {

template <typename T>
void widen(float* out, const T* x, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(out + i, load(x + i));
  for (; i < n; ++i) out[i] = to_float(x[i]);
}

float extreme(const float* x, int64_t n) {
  float best = 0, not_finite = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (__builtin_fabsf(x[i]) > __builtin_fabsf(best)) best = x[i];
    not_finite += x[i] * 0.f;
  }
  return best + not_finite;
}

HIGGS_INLINE IntVec nearest(Vec x, Vec inverse, IntVec lowest, IntVec highest) {
  IntVec q = round_to_int(x * inverse);
  q = q < lowest ? lowest : q;
  return q > highest ? highest : q;
}

double error(const float* x, int64_t n, float scale, int32_t lowest, int32_t highest) {
  const Vec s = splat(scale), inverse = splat(1.f / scale);
  const IntVec low = IntVec{} + lowest, high = IntVec{} + highest;
  Vec total = {};
  for (int64_t i = 0; i < n; i += kWidth) {
    Vec v = {};
    memcpy(&v, x + i, (n - i < kWidth ? n - i : kWidth) * sizeof(float));
    const Vec difference = v - s * __builtin_convertvector(nearest(v, inverse, low, high), Vec);
    total += difference * difference;
  }
  return sum(total);
}

void round(int8_t* q, const float* x, int64_t n, float scale, int32_t lowest, int32_t highest) {
  const Vec inverse = splat(1.f / scale);
  const IntVec low = IntVec{} + lowest, high = IntVec{} + highest;
  for (int64_t i = 0; i < n; i += kWidth) {
    const int64_t count = n - i < kWidth ? n - i : kWidth;
    Vec v = {};
    memcpy(&v, x + i, count * sizeof(float));
    const ByteVec bytes = __builtin_convertvector(nearest(v, inverse, low, high), ByteVec);
    memcpy(q + i, &bytes, count);
  }
}

}  // namespace

const QuantizationKernels quantization_kernels = {widen<bfloat16>, widen<float16>, extreme, error, round};

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
