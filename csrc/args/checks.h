// Argument checks shared by both backends: each failure names the argument, what it is, and what it should be.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <string>

#include "common/numbers.h"

namespace higgs_native {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline constexpr int64_t kAnySize = -1;

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Double: return "float64";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    case ScalarType::Bool: return "bool";
    default: return "another dtype";
  }
}

inline std::string shape_text(const Tensor& t) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < t.dim(); ++i) text << (i ? ", " : "") << t.size(i);
  text << ']';
  return text.str();
}

inline std::string shape_text(std::initializer_list<int64_t> shape) {
  std::ostringstream text;
  text << '[';
  bool first = true;
  for (int64_t n : shape) {
    text << (first ? "" : ", ");
    if (n == kAnySize) text << '*';
    else text << n;
    first = false;
  }
  text << ']';
  return text.str();
}

// `op: name must be ..., got ...` unless the tensor is contiguous and has this dtype and shape (kAnySize: any).
inline void check_tensor(
    const char* op, const char* name, const Tensor& t, ScalarType dtype, std::initializer_list<int64_t> shape) {
  STD_TORCH_CHECK(
      t.scalar_type() == dtype, op, ": ", name, " must be ", dtype_name(dtype), ", got ", dtype_name(t.scalar_type()));
  bool fits = t.dim() == static_cast<int64_t>(shape.size());
  if (fits) {
    int64_t i = 0;
    for (int64_t n : shape) {
      fits &= n == kAnySize || t.size(i) == n;
      ++i;
    }
  }
  STD_TORCH_CHECK(fits, op, ": ", name, " must have shape ", shape_text(shape), ", got ", shape_text(t));
  STD_TORCH_CHECK(t.is_contiguous(), op, ": ", name, " must be contiguous");
}

// The dispatcher chooses a backend if any argument lives there; the others must live there too.
inline void check_same_device(
    const char* op, const char* name, const Tensor& t, const char* other_name, const Tensor& other) {
  STD_TORCH_CHECK(
      t.is_cuda() == other.is_cuda() && t.get_device_index() == other.get_device_index(), op, ": ", name,
      " must be on the device of ", other_name);
}

struct NamedTensor {
  const char* name;
  const Tensor& tensor;
};

// All on the device of the first.
inline void check_same_device(const char* op, std::initializer_list<NamedTensor> tensors) {
  const NamedTensor& first = *tensors.begin();
  for (const NamedTensor& t : tensors) check_same_device(op, t.name, t.tensor, first.name, first.tensor);
}

// An id of a code: 0 .. 2^31 - 1.
inline int32_t check_code_id(const char* op, const char* name, int64_t id) {
  STD_TORCH_CHECK(id >= 0 && id <= INT32_MAX, op, ": ", name, " must be 0 to ", INT32_MAX, ", got ", id);
  return static_cast<int32_t>(id);
}

// A weight: float32, bfloat16 or float16.
inline void check_weight(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
  ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half, op, ": ", name,
      " must be float32, bfloat16 or float16, got ", dtype_name(dtype));
  check_tensor(op, name, t, dtype, shape);
}

inline NumberType number_type(const Tensor& weight) {
  switch (weight.scalar_type()) {
    case ScalarType::BFloat16: return NumberType::bfloat16;
    case ScalarType::Half: return NumberType::float16;
    default: return NumberType::float32;
  }
}

// Calls f with the weight's data as a pointer to its numbers.
template <typename F>
void with_weight_type(const Tensor& weight, const F& f) {
  const void* data = weight.const_data_ptr();
  switch (number_type(weight)) {
    case NumberType::float32: return f(static_cast<const float*>(data));
    case NumberType::bfloat16: return f(static_cast<const bfloat16*>(data));
    case NumberType::float16: return f(static_cast<const float16*>(data));
  }
}

inline void check_text_rows(const char* op, int64_t num_text_rows, int64_t rows) {
  STD_TORCH_CHECK(
      num_text_rows >= 0 && num_text_rows <= rows, op, ": num_text_rows must be between 0 and ", rows, ", got ",
      num_text_rows);
}

}  // namespace higgs_native
