// Rounds a weight matrix to integers and scales: of the scales of common/quantization.h, the one with the least squared
// error.
//
// Threads: a warp takes a group: a row for 8 bits, kQuantGroup columns of a row for 4 bits. Its halves try two scales
// at a time, each summing the error in 16 sums like the CPU's vectors of AVX-512, so both choose the same scale. (With
// narrower vectors the CPU may choose another of two equally good scales.) The integers of a scale are the same
// everywhere.
// Bytes: the matrix and its integers, once; later tries find a group in L1. A group with a value that is not finite
// gets a scale of NaN; the CPU refuses it.
#include "args/quantization.h"

#include <torch/csrc/stable/library.h>

#include "cuda/launch.h"

namespace higgs_native::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kHalfWarp = kWarp / 2;

// The multiple of the scale nearest to x, within the range.
__device__ __forceinline__ float nearest(float x, float inverse, const Integers& range) {
  const float q = fminf(fmaxf(x * inverse, static_cast<float>(range.lowest())), static_cast<float>(range.highest()));
  return static_cast<float>(__float2int_rn(q));
}

// The group of one warp.
template <typename T>
struct Group {
  const T* x;
  int count;
  Integers range;

  // The scale; 1 if all values are zero or too small for one, NaN if a value is not finite.
  __device__ float choose_scale(bool clip) const {
    const uint32_t lane = threadIdx.x % kWarp;
    // Magnitudes are ordered like the bits of a float; NaN is above infinity.
    uint32_t largest = 0;
    for (int i = lane; i < count; i += kWarp) largest = max(largest, float_as_bits(fabsf(to_float(x[i]))));
    largest = __reduce_max_sync(kAllLanes, largest);
    if (largest == 0) return 1;
    if (largest >= float_as_bits(INFINITY)) return NAN;
    uint32_t first = UINT32_MAX;
    for (int i = lane; i < count; i += kWarp) {
      if (float_as_bits(fabsf(to_float(x[i]))) == largest) first = min(first, static_cast<uint32_t>(i));
    }
    const float unclipped = range.unclipped_scale(to_float(x[__reduce_min_sync(kAllLanes, first)]));
    float best = range.stored(unclipped);
    if (best == 0) return 1;
    if (!clip) return best;
    // With 4 bits each clipping threshold but the first has two scales, one per sign.
    const int scales = range.bits == 4 ? 2 * kClips - 1 : kClips;
    float least_error = INFINITY;
    for (int pair = 0; pair < scales; pair += 2) {
      const int i = min(pair + static_cast<int>(lane / kHalfWarp), scales - 1);
      const bool negative = range.bits == 4 && i > 0 && i % 2 == 0;
      const float scale = range.clipped_scale(unclipped, range.bits == 4 ? (i + 1) / 2 : i, negative ? -1.f : 1.f);
      float squares = error(scale);
      if (scale == 0) squares = INFINITY;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float error_of_half = __shfl_sync(kAllLanes, squares, half * kHalfWarp);
        const float scale_of_half = __shfl_sync(kAllLanes, scale, half * kHalfWarp);
        if (error_of_half < least_error) {
          least_error = error_of_half;
          best = scale_of_half;
        }
      }
    }
    return best;
  }

  // The sum of (x - scale * q)^2, over the half warp.
  __device__ float error(float scale) const {
    const float inverse = 1 / scale;
    float sum = 0;
    for (int i = threadIdx.x % kHalfWarp; i < count; i += kHalfWarp) {
      const float value = to_float(x[i]), difference = fmaf(-scale, nearest(value, inverse, range), value);
      sum = fmaf(difference, difference, sum);
    }
#pragma unroll
    for (int with = kHalfWarp / 2; with > 0; with /= 2) sum += __shfl_xor_sync(kAllLanes, sum, with);
    return sum;
  }

  __device__ void round(int8_t* integers, float scale) const {
    const float inverse = 1 / scale;
    for (int i = threadIdx.x % kWarp; i < count; i += kWarp) {
      integers[i] = static_cast<int8_t>(nearest(to_float(x[i]), inverse, range));
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads) quantize_linear_kernel(QuantizeLinear args) {
  wait_for_earlier_launches();
  const int64_t group = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (group >= args.n * args.groups) return;
  const int64_t row = group / args.groups, column = group % args.groups * args.group_size;
  const int64_t at = row * args.k + column;
  const Group<T> values = {
      static_cast<const T*>(args.weight) + at, static_cast<int>(min(args.group_size, args.k - column)), args.range};
  const float scale = values.choose_scale(args.clip);
  values.round(args.integers + at, scale);
  if (threadIdx.x % kWarp != 0) return;
  if (args.range.bits == 8) static_cast<float*>(args.scales)[group] = scale;
  else static_cast<torch::headeronly::Half*>(args.scales)[group] = scale;
}

void quantize_linear_cuda(const Tensor& integers, const Tensor& scales, const Tensor& weight, int64_t bits, bool clip) {
  const QuantizeLinear args = check_quantize_linear(integers, scales, weight, bits, clip);
  const int64_t groups = args.n * args.groups;
  if (groups == 0) return;
  const Launch launch("quantize_linear", weight);
  const dim3 grid(static_cast<unsigned>(ceil_div(groups, kThreads / kWarp)));
  with_weight_type(weight, [&](auto* values) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(values)>>;
    launch(quantize_linear_kernel<T>, grid, kThreads, 0, args);
  });
}

}  // namespace

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY_IMPL(higgs_native, HIGGS_NATIVE_CUDA_KEY, m) {
  m.impl("quantize_linear", TORCH_BOX(&higgs_native::cuda::quantize_linear_cuda));
}
