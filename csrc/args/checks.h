// Argument checks of both backends. Every error reads `op: name must be X, got Y`.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "common/numbers.h"

namespace higgs_native {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline constexpr int64_t kAnySize = -1;
// No dimension is larger, so that sums and products of two sizes fit int64, and one size fits the kernels' int.
inline constexpr int64_t kMaxSize = INT32_MAX;

// ---- Errors

// Raises RuntimeError with the parts as one text. (STD_TORCH_CHECK would put a source line before it.)
template <typename... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

#define HIGGS_CHECK(condition, ...)      \
  do {                                   \
    if (!(condition)) [[unlikely]]       \
      ::higgs_native::fail(__VA_ARGS__); \
  } while (false)

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

inline std::string device_text(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  if (t.is_cuda()) return "cuda:" + std::to_string(t.get_device_index());
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type == aoti_torch_device_type_meta() ? "meta" : "another kind of device";
}

// ---- Devices. The dispatcher chooses a backend by one of the arguments; the kernels read all of them.

#if defined(USE_CUDA)
inline constexpr const char* kBackend = "cuda";
inline bool is_on_backend(const Tensor& t) { return t.is_cuda(); }
#else
inline constexpr const char* kBackend = "cpu";
inline bool is_on_backend(const Tensor& t) { return t.is_cpu(); }
#endif

// An argument and its name; an optional tensor that is absent has no device.
struct NamedTensor {
  NamedTensor(const char* name, const Tensor& t) : name(name), tensor(&t) {}
  NamedTensor(const char* name, const OptionalTensor& t) : name(name), tensor(t ? &*t : nullptr) {}

  const char* name;
  const Tensor* tensor;
};

inline bool is_on_device_of(const Tensor& t, const Tensor& other) {
  return is_on_backend(t) && t.get_device_index() == other.get_device_index();
}

// All tensors must be on one device of this backend: on that of the first one that is.
inline void check_devices(const char* op, std::initializer_list<NamedTensor> tensors) {
  const Tensor* expected = nullptr;
  for (const NamedTensor& t : tensors) {
    if (!expected && t.tensor && is_on_backend(*t.tensor)) expected = t.tensor;
  }
  for (const NamedTensor& t : tensors) {
    HIGGS_CHECK(
        !t.tensor || (expected && is_on_device_of(*t.tensor, *expected)), op, ": ", t.name, " must be on ",
        expected ? device_text(*expected) : kBackend, ", got ", device_text(*t.tensor));
  }
}

// Element `index` of a list must be on the device of `expected`.
inline void check_device(const char* op, const char* list, size_t index, const Tensor& t, const Tensor& expected) {
  HIGGS_CHECK(
      is_on_device_of(t, expected), op, ": ", list, "[", index, "] must be on ", device_text(expected), ", got ",
      device_text(t));
}

// ---- Dtypes and shapes

// The tensor must be contiguous and have this dtype and shape (kAnySize: any size).
inline void check_tensor(
    const char* op, const char* name, const Tensor& t, ScalarType dtype, std::initializer_list<int64_t> shape) {
  HIGGS_CHECK(
      t.scalar_type() == dtype, op, ": ", name, " must be ", dtype_name(dtype), ", got ", dtype_name(t.scalar_type()));
  bool fits = t.dim() == static_cast<int64_t>(shape.size()), is_small = true;
  if (fits) {
    int64_t i = 0;
    for (int64_t n : shape) {
      const int64_t size = t.size(i++);
      fits &= n == kAnySize || size == n;
      is_small &= size <= kMaxSize;
    }
  }
  HIGGS_CHECK(fits, op, ": ", name, " must have shape ", shape_text(shape), ", got ", shape_text(t));
  HIGGS_CHECK(is_small, op, ": ", name, " must have sizes of at most ", kMaxSize, ", got ", shape_text(t));
  HIGGS_CHECK(t.is_contiguous(), op, ": ", name, " must be contiguous, got another layout");
}

// A weight: float32, bfloat16 or float16.
inline void check_weight(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
  const ScalarType dtype = t.scalar_type();
  HIGGS_CHECK(
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

// Calls f with a pointer to the weight's numbers.
template <typename F>
void with_weight_type(const Tensor& weight, const F& f) {
  const void* data = weight.const_data_ptr();
  switch (number_type(weight)) {
    case NumberType::float32: return f(static_cast<const float*>(data));
    case NumberType::bfloat16: return f(static_cast<const bfloat16*>(data));
    case NumberType::float16: return f(static_cast<const float16*>(data));
  }
}

// ---- Numbers

inline int32_t check_code_id(const char* op, const char* name, int64_t id) {
  HIGGS_CHECK(id >= 0 && id <= INT32_MAX, op, ": ", name, " must be 0 to ", INT32_MAX, ", got ", id);
  return static_cast<int32_t>(id);
}

inline void check_text_rows(const char* op, int64_t num_text_rows, int64_t rows) {
  HIGGS_CHECK(
      num_text_rows >= 0 && num_text_rows <= rows, op, ": num_text_rows must be between 0 and ", rows, ", got ",
      num_text_rows);
}

}  // namespace higgs_native
