// The inner kernels behind every product with a weight matrix, for one thread.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace higgs_native::cpu {

// A block of `out = x @ weight.T + residual`: `rows` rows of x against `n` rows of the weight.
template <typename T>
struct ProductBlock {
  float* out;  // [rows, n], rows `out_stride` apart
  int64_t out_stride;
  const float* x;   // [rows, k], contiguous
  const T* weight;  // [n, k], contiguous
  int64_t rows, n, k;
  const float* residual;  // like out, with its stride; or null
};

// Each output is one chain of fused multiply-adds per vector lane over k, in order, whatever `rows` and `n` are: a row's
// result does not depend on what else stands in the batch, nor on the number of threads.
template <typename T>
struct TypedLinearKernels {
  void (*product)(const ProductBlock<T>&);
  // out = x / sqrt(mean(x^2) + eps) * weight, all [k]
  void (*rms_norm)(float* out, const float* x, const T* weight, int64_t k, float eps);
};

struct LinearKernels {
  TypedLinearKernels<float> f32;
  TypedLinearKernels<uint16_t> bf16;
  // gate = silu(gate) * up, both [n]
  void (*silu_mul)(float* gate, const float* up, int64_t n);

  template <typename T>
  const TypedLinearKernels<T>& typed() const {
    if constexpr (sizeof(T) == 2) return bf16;
    else return f32;
  }
};

namespace generic {
extern const LinearKernels linear_kernels;
}
namespace avx2 {
extern const LinearKernels linear_kernels;
}
namespace avx512 {
extern const LinearKernels linear_kernels;
}

inline const LinearKernels& linear_kernels() {
#if defined(__x86_64__)
  static const LinearKernels& chosen = active_isa() == Isa::avx512 ? avx512::linear_kernels
                                       : active_isa() == Isa::avx2 ? avx2::linear_kernels
                                                                   : generic::linear_kernels;
  return chosen;
#else
  return generic::linear_kernels;
#endif
}

}  // namespace higgs_native::cpu
