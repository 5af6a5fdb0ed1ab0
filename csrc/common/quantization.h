// The scales that rounding a weight matrix to integers tries.
#pragma once

#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace higgs_native {

inline constexpr int kClips = 10;         // clipping thresholds that are tried,
inline constexpr float kMinClip = 0.55f;  // from the largest magnitude down to this share of it

// The integers of a format: -127 .. 127, or -8 .. 7.
struct Integers {
  int bits;

  HIGGS_HOST_DEVICE int32_t highest() const { return (1 << (bits - 1)) - 1; }
  HIGGS_HOST_DEVICE int32_t lowest() const { return bits == 4 ? -highest() - 1 : -highest(); }

  // The scale that clips nothing; `extreme` is the value of largest magnitude. 4 bits have one more integer below zero:
  // `extreme` takes it, whatever its sign.
  HIGGS_HOST_DEVICE float unclipped_scale(float extreme) const {
    return bits == 4 ? extreme / static_cast<float>(lowest()) : fabsf(extreme) / static_cast<float>(highest());
  }

  // The scale of clipping threshold i of kClips. For 4 bits `sign` chooses the side of zero with one more integer.
  HIGGS_HOST_DEVICE float clipped_scale(float unclipped, int i, float sign) const {
    return stored(unclipped * (1 - (1 - kMinClip) * static_cast<float>(i) / (kClips - 1)) * sign);
  }

  // The scale as it is stored: float16 for 4 bits, at most its largest number; 0 if its inverse overflows.
  HIGGS_HOST_DEVICE float stored(float scale) const {
    if (bits == 4) {
      scale = static_cast<float>(torch::headeronly::Half(fminf(fmaxf(scale, -65504.f), 65504.f)));
    }
    return fabsf(1 / scale) < INFINITY ? scale : 0;
  }
};

}  // namespace higgs_native
