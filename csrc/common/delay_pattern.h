// The delay pattern's index arithmetic. Codebook k of audio of T frames is BOS, its T codes and EOS, shifted right by k
// columns. The columns before are BOS, those after are EOS.
#pragma once

#include <cstdint>

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

}  // namespace higgs_native
