// The loops of sampling over a row of logits, for one thread. Every instruction set gives the same integers.
#pragma once

#include <cstdint>

#include "cpu/simd/isa.h"

namespace higgs_native::cpu {

struct KeyRange {
  uint32_t lowest, highest;
};

struct SamplingKernels {
  // keys[i] = order_key(logits[i] / temperature)
  KeyRange (*make_keys)(uint32_t* keys, const float* logits, int64_t n, float temperature);
  // weights[i] = draw_weight(score of keys[i] - best); returns their sum
  uint64_t (*weigh)(uint64_t* weights, const uint32_t* keys, int64_t n, float best);
};

HIGGS_NATIVE_KERNEL_TABLE(SamplingKernels, sampling_kernels)

}  // namespace higgs_native::cpu
