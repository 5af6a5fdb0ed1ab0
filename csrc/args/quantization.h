// The checked arguments of quantize_linear.
#pragma once

#include <algorithm>

#include "args/checks.h"
#include "common/quantization.h"
#include "common/weight_format.h"

namespace higgs_native {

struct QuantizeLinear {
  int8_t* integers;    // [n, k]
  void* scales;        // 8 bits: [n], float32; 4 bits: [n, groups], float16
  const void* weight;  // [n, k], float32, bfloat16 or float16
  Integers range;
  int64_t n, k, groups, group_size;  // groups of a row and columns of a group; a row's last group may be shorter
  bool clip;
};

// The backend checks that the values are finite.
inline QuantizeLinear check_quantize_linear(
    const Tensor& integers, const Tensor& scales, const Tensor& weight, int64_t bits, bool clip) {
  const char* op = "quantize_linear";
  check_devices(op, {{"integers", integers}, {"scales", scales}, {"weight", weight}});
  HIGGS_CHECK(bits == 8 || bits == 4, op, ": bits must be 8 or 4, got ", bits);
  check_weight(op, "weight", weight, {kAnySize, kAnySize});
  const int64_t n = weight.size(0), k = weight.size(1);
  check_tensor(op, "integers", integers, ScalarType::Char, {n, k});
  const int64_t size = bits == 8 ? std::max<int64_t>(k, 1) : kQuantGroup;
  const int64_t groups = bits == 8 ? 1 : (k + size - 1) / size;
  if (bits == 8) check_tensor(op, "scales", scales, ScalarType::Float, {n});
  else check_tensor(op, "scales", scales, ScalarType::Half, {n, groups});
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
