// Snake, x + sin(alpha x)^2 / (alpha + 1e-9), in float32.
#pragma once

#include "args/audio_tokenizer.h"
#include "cuda/launch.h"

namespace higgs_native::cuda {

namespace {

// Up to the first limit, multiples of pi in three parts are exact. Above the second, sin^2 / alpha is below x's last
// digit.
constexpr float kReducible = 20000.f, kNegligible = 134217728.f;

// sin(y)^2 has the period pi; an odd polynomial gives the sine of the remainder.
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
    r = y * 0.f;  // NaN if y is not finite
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

constexpr int kSnakeThreads = 256, kSnakeValues = 4;  // values per thread

__global__ void __launch_bounds__(kSnakeThreads) snake_kernel(Snake args, int64_t blocks_of_row) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t row = blockIdx.x / blocks_of_row;
  const int64_t first = blockIdx.x % blocks_of_row * (kSnakeThreads * kSnakeValues) + threadIdx.x;
  const SnakeSlope snake(args.alpha[row % args.channels]);
#pragma unroll
  for (int i = 0; i < kSnakeValues; ++i) {
    const int64_t t = first + i * kSnakeThreads;
    if (t < args.time) args.out[row * args.out_stride + t] = snake(args.x[row * args.x_stride + t]);
  }
}

}  // namespace

}  // namespace higgs_native::cuda
