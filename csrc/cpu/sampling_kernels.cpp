// Plain loops, which the compiler vectorizes for each instruction set. Compiled without contraction: see common/draw.h.
#include "cpu/sampling_kernels.h"

#include "common/draw.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

namespace {

KeyRange make_keys(uint32_t* __restrict keys, const float* __restrict logits, int64_t n, float temperature) {
  uint32_t lowest = UINT32_MAX, highest = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t key = order_key(divide(logits[i], temperature));
    keys[i] = key;
    lowest = key < lowest ? key : lowest;
    highest = key > highest ? key : highest;
  }
  return {lowest, highest};
}

uint64_t weigh(uint64_t* __restrict weights, const uint32_t* __restrict keys, int64_t n, float best) {
  uint64_t total = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint64_t weight = draw_weight(add(key_to_float(keys[i]), -best));
    weights[i] = weight;
    total += weight;
  }
  return total;
}

}  // namespace

const SamplingKernels sampling_kernels = {make_keys, weigh};

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
