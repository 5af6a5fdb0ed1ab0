// GEMM with packed weights, for all families: RMSNorm before it, an epilogue after it.
#pragma once

#include "args/decoder.h"
#include "cuda/launch.h"

namespace higgs_native::cuda {

// RMSNorm before a GEMM: rows below `num_text_rows` have `text_weight`, the others `audio_weight`. Without weights
// there is none.
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

// Destinations of query, key and value rows: query and key are rotated, key and value are written into the cache. With
// `query_norm` or `key_norm`, each head of query or key is normalized first.
struct QkvTargets {
  float* query;         // [rows, query_heads * head_dim]
  void *keys, *values;  // [pages, kv_heads, 1 << page_shift, head_dim]
  NumberType type;
  const float* table;                                  // [positions, head_dim]
  const int32_t *slots, *positions, *cache_positions;  // [rows]
  int query_heads, kv_heads, head_dim;
  const int32_t* page_table;  // [slots, max_pages]
  int max_pages, page_shift;
  const void *query_norm, *key_norm;  // [head_dim], of the type of the row's norm; or null

  // Rotates values i and i + head_dim / 2 of a query or key head, and writes them. Heads are counted through query, key
  // and value.
  __device__ __forceinline__ void rotate_and_write(int row, int head, int i, float a, float b) const;
};

enum class Epilogue {
  kResidual,  // out [rows, n] = sum + residual, if there is one
  kSiluMul,   // out [rows, n_out] = silu(gate) * up, from panels of kHalfPanel rows of each
  kRope,      // rotates query and key, writes key and value into the cache: QkvTargets
};

// out = epilogue(rms_norm(x) @ weight.T)
struct Gemm {
  PackedWeight weight = {};
  const float* x = nullptr;  // [rows, weight.k]
  int rows = 0;
  RowNorm norm;
  Epilogue epilogue = Epilogue::kResidual;
  float* out = nullptr;
  const float* residual = nullptr;
  const float* added = nullptr;  // [rows, panels * kPanel]: to the sums, before the epilogue; or null
  int n_out = 0;                 // columns of `out`
  QkvTargets rope = {};
  bool vectorized = false;  // x and the norms' weights can be read 4 values at a time; gemm() sets it
};

// Runs the GEMM. `like`: a tensor on the device where working memory is allocated.
void gemm(const Launch& launch, const Gemm& p, const Tensor& like);

// Computes the sums that adapters add to a GEMM whose weight, x, rows and norm are set, and points `Gemm::added` to
// them. The result owns their memory. Row r of the GEMM has the adapter of the batch's row `first` + r.
Tensor add_low_rank(const Launch& launch, Gemm& p, const LowRank& low_rank, int64_t first, const Tensor& like);

}  // namespace higgs_native::cuda
