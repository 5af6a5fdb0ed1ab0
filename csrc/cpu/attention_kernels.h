// The inner kernels of attention over the KV cache, for one thread.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace higgs_native::cpu {

inline constexpr int64_t kSplit = 512;  // cache positions that are attended to as one piece

// The query heads of one row that share a KV head, against one piece of that head's cache.
template <typename T>
struct AttentionPiece {
  const float* query;  // [group, head_dim]
  const T* key;        // [count, head_dim]
  const T* value;      // [count, head_dim]
  int64_t group, head_dim, count;
  float scale;
  float* scores;   // [group, kSplit], scratch
  float* out;      // [group, head_dim]: sum of exp(score - maximum) * value
  float* maximum;  // [group]
  float* total;    // [group]: sum of exp(score - maximum)
};

template <typename T>
struct TypedAttentionKernels {
  void (*attend)(const AttentionPiece<T>&);
  // Rotates the pairs (i, i + head_dim / 2), begin <= i < end, of a head into out [head_dim]. x holds the first members of
  // the pairs, then the second; angles [head_dim] the cosines of all pairs, then the sines.
  void (*rotate)(T* out, const float* x, const float* angles, int64_t begin, int64_t end, int64_t head_dim);
  // The same without a rotation.
  void (*place)(T* out, const float* x, int64_t begin, int64_t end, int64_t head_dim);
};

struct AttentionKernels {
  TypedAttentionKernels<float> f32;
  TypedAttentionKernels<uint16_t> bf16;

  template <typename T>
  const TypedAttentionKernels<T>& typed() const {
    if constexpr (sizeof(T) == 2) return bf16;
    else return f32;
  }
};

namespace generic {
extern const AttentionKernels attention_kernels;
}
namespace avx2 {
extern const AttentionKernels attention_kernels;
}
namespace avx512 {
extern const AttentionKernels attention_kernels;
}

inline const AttentionKernels& attention_kernels() {
#if defined(__x86_64__)
  static const AttentionKernels& chosen = active_isa() == Isa::avx512 ? avx512::attention_kernels
                                          : active_isa() == Isa::avx2 ? avx2::attention_kernels
                                                                      : generic::attention_kernels;
  return chosen;
#else
  return generic::attention_kernels;
#endif
}

}  // namespace higgs_native::cpu
