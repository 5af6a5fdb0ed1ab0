// What both backends share of rounding weights to integers: the checked arguments, and the scales that are tried.
#pragma once

#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>

#include "args/checks.h"
#include "common/host_device.h"
#include "common/weight_format.h"

namespace higgs_native {

inline constexpr int kClips = 10;           // clipping thresholds that are tried,
inline constexpr float kLeastClip = 0.55f;  // from the largest magnitude down to this share of it

// The integers of a format: -127 .. 127, or -8 .. 7.
struct Integers {
  int bits;

  HIGGS_HOST_DEVICE int32_t highest() const { return (1 << (bits - 1)) - 1; }
  HIGGS_HOST_DEVICE int32_t lowest() const { return bits == 4 ? -highest() - 1 : -highest(); }

  // The scale that loses nothing of the value of largest magnitude. With 4 bits the range has one step more below zero:
  // that value goes there, whatever its sign.
  HIGGS_HOST_DEVICE float whole_scale(float extreme) const {
    return bits == 4 ? extreme / static_cast<float>(lowest()) : fabsf(extreme) / static_cast<float>(highest());
  }

  // The scale that is tried for clipping step i of kClips. With 4 bits `sign` says which side of zero has the step more.
  HIGGS_HOST_DEVICE float clipped_scale(float whole, int i, float sign) const {
    return stored(whole * (1 - (1 - kLeastClip) * static_cast<float>(i) / (kClips - 1)) * sign);
  }

  // What a scale becomes when it is stored: with 4 bits as float16 no larger than its largest number, and 0 where its
  // inverse overflows.
  HIGGS_HOST_DEVICE float stored(float scale) const {
    if (bits == 4) {
      scale = static_cast<float>(torch::headeronly::Half(fminf(fmaxf(scale, -65504.f), 65504.f)));
    }
    return fabsf(1 / scale) < INFINITY ? scale : 0;
  }
};

struct QuantizeLinear {
  int8_t* integers;    // [n, k]
  void* scales;        // 8 bits: [n], float32; 4 bits: [n, groups], float16
  const void* weight;  // [n, k], float32, bfloat16 or float16
  Integers range;
  int64_t n, k, groups, group_size;  // the groups of a row, and the columns of one; the last may be shorter
  bool clip;
};

// Whether the values are finite is for the backend to see.
inline QuantizeLinear check_quantize_linear(
    const Tensor& integers, const Tensor& scales, const Tensor& weight, int64_t bits, bool clip) {
  const char* op = "quantize_linear";
  STD_TORCH_CHECK(bits == 8 || bits == 4, op, ": bits must be 8 or 4, got ", bits);
  check_weight(op, "weight", weight, {kAnySize, kAnySize});
  const int64_t n = weight.size(0), k = weight.size(1);
  check_tensor(op, "integers", integers, ScalarType::Char, {n, k});
  const int64_t size = bits == 8 ? std::max<int64_t>(k, 1) : kQuantGroup;
  const int64_t groups = bits == 8 ? 1 : (k + size - 1) / size;
  if (bits == 8) check_tensor(op, "scales", scales, ScalarType::Float, {n});
  else check_tensor(op, "scales", scales, ScalarType::Half, {n, groups});
  check_same_device(op, {{"weight", weight}, {"integers", integers}, {"scales", scales}});
  return {
      static_cast<int8_t*>(integers.mutable_data_ptr()),
      scales.mutable_data_ptr(),
      weight.const_data_ptr(),
      {static_cast<int>(bits)},
      n,
      k,
      groups,
      size,
      clip};
}

}  // namespace higgs_native
