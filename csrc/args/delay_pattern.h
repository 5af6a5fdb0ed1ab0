// The checked arguments of delay_pattern_build and delay_pattern_revert.
#pragma once

#include "args/checks.h"
#include "common/delay_pattern.h"

namespace higgs_native {

inline DelayPatternBuild check_delay_pattern_build(
    const Tensor& out, const Tensor& codes, int64_t bos_id, int64_t eos_id) {
  const char* op = "delay_pattern_build";
  check_devices(op, {{"out", out}, {"codes", codes}});
  check_tensor(op, "codes", codes, ScalarType::Int, {kAnySize, kAnySize});
  const int64_t num_codebooks = codes.size(0), num_frames = codes.size(1);
  const int64_t num_columns = num_frames + num_codebooks + 1;
  check_tensor(op, "out", out, ScalarType::Int, {num_codebooks, num_columns});
  return {
      static_cast<int32_t*>(out.mutable_data_ptr()),
      static_cast<const int32_t*>(codes.const_data_ptr()),
      num_codebooks,
      num_frames,
      num_columns,
      check_code_id(op, "bos_id", bos_id),
      check_code_id(op, "eos_id", eos_id)};
}

inline DelayPatternRevert check_delay_pattern_revert(const Tensor& out, const Tensor& delayed) {
  const char* op = "delay_pattern_revert";
  check_devices(op, {{"out", out}, {"delayed", delayed}});
  check_tensor(op, "delayed", delayed, ScalarType::Int, {kAnySize, kAnySize});
  const int64_t num_codebooks = delayed.size(0), num_columns = delayed.size(1);
  HIGGS_CHECK(
      num_columns >= num_codebooks, op, ": delayed must have at least ", num_codebooks,
      " columns, one per codebook, got ", num_columns);
  check_tensor(op, "out", out, ScalarType::Int, {num_codebooks, num_columns - num_codebooks + 1});
  return {
      static_cast<int32_t*>(out.mutable_data_ptr()), static_cast<const int32_t*>(delayed.const_data_ptr()),
      num_codebooks, num_columns};
}

}  // namespace higgs_native
