// The inner kernels of attention over the KV cache, for one thread.
#pragma once

#include <cstdint>

#include <type_traits>

#include "common/numbers.h"
#include "common/softmax_state.h"
#include "cpu/simd/isa.h"

namespace higgs_native::cpu {

inline constexpr int64_t kSplit = 512;  // cache positions of a split: whole pages

// The query heads of one row that share a KV head, over one split of that head's cache.
template <typename T>
struct AttentionSplit {
  const float* query;      // [group, head_dim]
  const T *keys, *values;  // of the KV head in page 0; a page has [page_size, head_dim] of it
  const int32_t* pages;    // of the split
  int64_t page_stride;     // numbers between two pages
  int64_t page_size, group, head_dim, count;
  float scale;
  float* scores;         // [group, kSplit], scratch
  float* sums;           // [group, head_dim]: sum of exp(score - maximum) * value; written
  SoftmaxState* states;  // [group]; written
};

template <typename T>
struct TypedAttentionKernels {
  void (*attend)(const AttentionSplit<T>&);
  // Rotates the pairs (i, i + head_dim / 2) of head x [head_dim] into out. `angles` [head_dim] holds the cosines of all
  // pairs, then the sines.
  void (*rotate)(T* out, const float* x, const float* angles, int64_t head_dim);
  // Copies head x without a rotation.
  void (*store)(T* out, const float* x, int64_t head_dim);
};

struct AttentionKernels {
  TypedAttentionKernels<float> f32;
  TypedAttentionKernels<bfloat16> bf16;
  TypedAttentionKernels<float16> f16;

  template <typename T>
  const TypedAttentionKernels<T>& typed() const {
    if constexpr (std::is_same_v<T, bfloat16>) return bf16;
    else if constexpr (std::is_same_v<T, float16>) return f16;
    else return f32;
  }
};

HIGGS_NATIVE_KERNEL_TABLE(AttentionKernels, attention_kernels)

}  // namespace higgs_native::cpu
