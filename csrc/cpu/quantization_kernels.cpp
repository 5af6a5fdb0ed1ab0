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

// Calls f(vector, index of its first value, number of its values) for all of x. Copies of a whole vector have a constant
// size, so they are one load.
template <typename F>
HIGGS_INLINE void for_vectors(const float* x, int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) f(load(x + i), i, int64_t{kWidth});
  if (i < n) f(load(x + i, n - i), i, n - i);
}

float extreme(const float* x, int64_t n) {
  Vec high = {}, low = {}, not_finite = {};
  for_vectors(x, n, [&](Vec v, int64_t, int64_t) __attribute__((always_inline)) {
    high = larger(v, high);
    low = larger(-v, low);
    not_finite += v * splat(0.f);
  });
  const float above = largest(high), below = largest(low), invalid = sum(not_finite);
  if (invalid != 0) return invalid;
  if (above != below) return above > below ? above : -below;
  // Both signs: the first of them.
  for (int64_t i = 0; i < n; ++i) {
    if (__builtin_fabsf(x[i]) == above) return x[i];
  }
  return 0;
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
  for_vectors(x, n, [&](Vec v, int64_t, int64_t) __attribute__((always_inline)) {
    const Vec difference = v - s * __builtin_convertvector(nearest(v, inverse, low, high), Vec);
    total += difference * difference;
  });
  return sum(total);
}

void round(int8_t* q, const float* x, int64_t n, float scale, int32_t lowest, int32_t highest) {
  const Vec inverse = splat(1.f / scale);
  const IntVec low = IntVec{} + lowest, high = IntVec{} + highest;
  for_vectors(x, n, [&](Vec v, int64_t i, int64_t count) __attribute__((always_inline)) {
    const ByteVec bytes = __builtin_convertvector(nearest(v, inverse, low, high), ByteVec);
    memcpy(q + i, &bytes, count);
  });
}

}  // namespace

const QuantizationKernels quantization_kernels = {widen<bfloat16>, widen<float16>, extreme, error, round};

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
