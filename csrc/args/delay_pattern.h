// What both backends share of the delay pattern: the checked arguments and the index arithmetic. Codebook k of an audio of
// T frames is BOS, its T codes, EOS, shifted right by k columns; what the shift leaves free is BOS on the left and EOS on
// the right.
#pragma once

#include "args/checks.h"
#include "common/host_device.h"

namespace higgs_native {

struct DelayPatternBuild {
  int32_t* out;          // [num_codebooks, num_columns]
  const int32_t* codes;  // [num_codebooks, num_frames]
  int64_t num_codebooks, num_frames, num_columns;
  int32_t bos_id, eos_id;

  HIGGS_HOST_DEVICE int32_t code(int64_t k, int64_t column) const {
    int64_t frame = column - k - 1;
    if (frame < 0) return bos_id;
    return frame < num_frames ? codes[k * num_frames + frame] : eos_id;
  }
};

struct DelayPatternRevert {
  int32_t* out;            // [num_codebooks, num_columns - num_codebooks + 1]
  const int32_t* delayed;  // [num_codebooks, num_columns]
  int64_t num_codebooks, num_columns;

  HIGGS_HOST_DEVICE int64_t num_out_columns() const { return num_columns - num_codebooks + 1; }
  HIGGS_HOST_DEVICE int32_t code(int64_t k, int64_t column) const { return delayed[k * num_columns + column + k]; }
};

inline DelayPatternBuild check_delay_pattern_build(
    const Tensor& out, const Tensor& codes, int64_t bos_id, int64_t eos_id) {
  const char* op = "delay_pattern_build";
  check_tensor(op, "codes", codes, ScalarType::Int, {kAnySize, kAnySize});
  int64_t num_codebooks = codes.size(0), num_frames = codes.size(1), num_columns = num_frames + num_codebooks + 1;
  check_tensor(op, "out", out, ScalarType::Int, {num_codebooks, num_columns});
  check_same_device(op, "codes", codes, "out", out);
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
  check_tensor(op, "delayed", delayed, ScalarType::Int, {kAnySize, kAnySize});
  int64_t num_codebooks = delayed.size(0), num_columns = delayed.size(1);
  STD_TORCH_CHECK(
      num_columns >= num_codebooks, op, ": delayed must have at least as many columns as codebooks (", num_codebooks,
      "), got ", num_columns);
  check_tensor(op, "out", out, ScalarType::Int, {num_codebooks, num_columns - num_codebooks + 1});
  check_same_device(op, "delayed", delayed, "out", out);
  return {
      static_cast<int32_t*>(out.mutable_data_ptr()), static_cast<const int32_t*>(delayed.const_data_ptr()),
      num_codebooks, num_columns};
}

}  // namespace higgs_native
