// The softmax over the keys seen so far, of one query and head, and the merge of two such states. Every part of the
// cache gives a state and a sum of values weighted with exp(score - maximum); parts are merged one after the other, in
// order.
#pragma once

#include <cmath>

#include "common/host_device.h"

namespace higgs_native {

struct SoftmaxState {
  float maximum;  // of the scores
  float total;    // sum of exp(score - maximum)
};

// a * b + c, fused on CUDA, each operation rounded separately on the CPU.
HIGGS_HOST_DEVICE float scaled_sum(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(HIGGS_NATIVE_EMULATE_CUDA)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

struct SoftmaxMerge {
  SoftmaxState state;  // of both
  float keep, add;     // factors of the first and of the second weighted sum

  HIGGS_HOST_DEVICE float sum(float first, float second) const { return scaled_sum(first, keep, second * add); }
};

HIGGS_HOST_DEVICE SoftmaxMerge merge(SoftmaxState first, SoftmaxState second) {
  SoftmaxMerge m;
  m.state.maximum = fmaxf(first.maximum, second.maximum);
  m.keep = expf(first.maximum - m.state.maximum);
  m.add = expf(second.maximum - m.state.maximum);
  m.state.total = m.sum(first.total, second.total);
  return m;
}

}  // namespace higgs_native
