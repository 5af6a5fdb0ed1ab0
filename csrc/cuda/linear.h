// What the families that multiply with packed weights share: one product, with what precedes and what follows it.
#pragma once

#include "args/packed_weight.h"
#include "cuda/launch.h"

namespace higgs_native::cuda {

// Normalises rows before a product: rows before `num_text_rows` with `text_weight`, the others with `audio_weight`. Without
// weights nothing is normalised.
struct RowNorm {
  const void* text_weight = nullptr;  // [k]
  const void* audio_weight = nullptr;
  NumberType type = NumberType::float32;
  int num_text_rows = 0;
  float eps = 0;
};

inline RowNorm row_norm(const Tensor& text_weight, const Tensor& audio_weight, int64_t num_text_rows, double eps) {
  return {
      text_weight.const_data_ptr(), audio_weight.const_data_ptr(), number_type(text_weight),
      static_cast<int>(num_text_rows), static_cast<float>(eps)};
}

// Where query, key and value rows of a product go: rotated, and the latter two into the cache.
struct RopeCache {
  float* query;         // [rows, query_heads * head_dim]
  void *keys, *values;  // [slots, kv_heads, length, head_dim]
  NumberType type;
  const float* table;                                  // [positions, head_dim]
  const int32_t *slots, *positions, *cache_positions;  // [rows]
  int query_heads, kv_heads, head_dim;
  int64_t length;

  // Writes values i and i + head_dim / 2 of a head, of the query, key or value heads in their order.
  __device__ __forceinline__ void write(int row, int head, int i, float a, float b) const;
};

enum class Following {
  residual,  // out [rows, n] = product + residual, where there is one
  silu,      // out [rows, n_out] = silu(gate) * up, of panels that hold kHalfPanel rows of each
  rope,      // see RopeCache
};

// out = rms_norm(x) @ weight.T, and what follows.
struct Product {
  PackedWeight weight = {};
  const float* x = nullptr;  // [rows, weight.k]
  int rows = 0;
  RowNorm norm;
  Following following = Following::residual;
  float* out = nullptr;
  const float* residual = nullptr;
  int n_out = 0;  // columns of `out`
  RopeCache rope = {};
  bool vectors = false;  // x and the norms' weights can be read 4 values at a time; for product() to say
};

// Runs it; `like` is a tensor on the device, from which working memory is made.
void product(const Launch& launch, const Product& p, const Tensor& like);

__device__ __forceinline__ void RopeCache::write(int row, int head, int i, float a, float b) const {
  const int half = head_dim / 2;
  if (head < query_heads + kv_heads) {
    const float* angles = table + static_cast<int64_t>(positions[row]) * head_dim;
    const float cosine = angles[i], sine = angles[half + i];
    const float first = a * cosine - b * sine;
    b = b * cosine + a * sine;
    a = first;
  }
  if (head < query_heads) {
    float* to = query + (static_cast<int64_t>(row) * query_heads + head) * head_dim;
    to[i] = a;
    to[half + i] = b;
    return;
  }
  head -= query_heads;
  void* cache = head < kv_heads ? keys : values;
  const int64_t at =
      ((static_cast<int64_t>(slots[row]) * kv_heads + head % kv_heads) * length + cache_positions[row]) * head_dim + i;
  if (type == NumberType::bfloat16) {
    static_cast<bfloat16*>(cache)[at] = to_bfloat16(a);
    static_cast<bfloat16*>(cache)[at + half] = to_bfloat16(b);
  } else if (type == NumberType::float16) {
    static_cast<float16*>(cache)[at] = to_float16(a);
    static_cast<float16*>(cache)[at + half] = to_float16(b);
  } else {
    static_cast<float*>(cache)[at] = a;
    static_cast<float*>(cache)[at + half] = b;
  }
}

}  // namespace higgs_native::cuda
