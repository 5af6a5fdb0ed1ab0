// Builds and reverts the delay pattern: a few thousand integers, each moved once.
#include "args/delay_pattern.h"

#include <torch/csrc/stable/library.h>

namespace {

using namespace higgs_native;

void delay_pattern_build_cpu(const Tensor& out, const Tensor& codes, int64_t bos_id, int64_t eos_id) {
  const DelayPatternBuild args = check_delay_pattern_build(out, codes, bos_id, eos_id);
  int32_t* next = args.out;
  for (int64_t k = 0; k < args.num_codebooks; ++k) {
    for (int64_t column = 0; column < args.num_columns; ++column) *next++ = args.code(k, column);
  }
}

void delay_pattern_revert_cpu(const Tensor& out, const Tensor& delayed) {
  const DelayPatternRevert args = check_delay_pattern_revert(out, delayed);
  int32_t* next = args.out;
  for (int64_t k = 0; k < args.num_codebooks; ++k) {
    for (int64_t column = 0; column < args.num_out_columns(); ++column) *next++ = args.code(k, column);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) {
  m.impl("delay_pattern_build", TORCH_BOX(&delay_pattern_build_cpu));
  m.impl("delay_pattern_revert", TORCH_BOX(&delay_pattern_revert_cpu));
}
