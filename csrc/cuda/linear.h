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

// Weights of a later launch that this one loads into L2, where that launch finds them: the bytes [begin, end) of every
// panel, so that all its blocks gain. Loads that are not waited for fill the time in which memory would idle: while
// attention merges, and between the last loads of one launch and the first of the next.
struct NextWeights {
  static constexpr uint32_t kPiece = 16 << 10;  // bytes that a lane asks for at a time

  const char* data = nullptr;
  int64_t panel_bytes = 0;
  int panels = 0, panel_bits = 0;  // panel_bits: of the largest panel's number
  uint32_t begin = 0, end = 0;

  int64_t bytes() const { return static_cast<int64_t>(panels) * (end - begin); }

  // Asks for a block's share; a lane per warp does, since the instruction takes one lane at a time. Pieces are counted
  // as if the panels were a power of two: a division by their number would take longer than the launch has to spare.
  __device__ __forceinline__ void prefetch(int block, int blocks) const {
    if (threadIdx.x % kWarp != 0) return;
    const int pieces = static_cast<int>((end - begin + kPiece - 1) / kPiece) << panel_bits;
    const int first = block + static_cast<int>(threadIdx.x) / kWarp * blocks;
#pragma unroll 1
    for (int i = first; i < pieces; i += blocks * static_cast<int>(blockDim.x) / kWarp) {
      const int panel = i & ((1 << panel_bits) - 1);
      if (panel >= panels) continue;
      const uint32_t from = begin + static_cast<uint32_t>(i >> panel_bits) * kPiece;
      prefetch_l2(data + panel * panel_bytes + from, min(kPiece, end - from));
    }
  }
};

// At most `max_bytes` of a packed weight, behind the first `skipped_bytes` of the same choice.
NextWeights next_weights(const Tensor& packed, int64_t max_bytes, int64_t skipped_bytes = 0);

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
  uint32_t* packed_out = nullptr;  // of kSiluMul, if not null: takes the outputs as the next GEMM's packed_x
  uint32_t* packed_x = nullptr;    // if not null: the words of x, which is not read; see packed_words()
  const float* residual = nullptr;
  const float* added = nullptr;  // [rows, panels * kPanel]: to the sums, before the epilogue; or null
  int n_out = 0;                 // columns of `out`
  QkvTargets rope = {};
  NextWeights next;
  bool next_first = false;    // whether `next` is loaded before this launch's weights, which L2 has already
  int32_t* zeroed = nullptr;  // counters of a later launch, set to zero
  int num_zeroed = 0;
  bool vectorized = false;  // x and the norms' weights can be read 4 values at a time; gemm() sets this and the next
  uint32_t inverse_of_rows = 0;  // of a tile at most: i / rows is i * inverse_of_rows >> 16, for i up to 8,191

  int64_t prefetched_bytes() const { return next.bytes(); }

  // Sets a block's share of the counters to zero.
  __device__ __forceinline__ void set_zeros(int block, int blocks) const {
    const int threads = static_cast<int>(blockDim.x);
    for (int i = block * threads + static_cast<int>(threadIdx.x); i < num_zeroed; i += blocks * threads) zeroed[i] = 0;
  }
};

// Runs the GEMM. `like`: a tensor on the device where working memory is allocated.
void gemm(const Launch& launch, const Gemm& p, const Tensor& like);

// The words of x for a GEMM that takes them from the GEMM before it, whose weight has the same format; 0 if it can't.
int64_t packed_words(const Launch& launch, const Gemm& p);

// Computes the sums that adapters add to a GEMM whose weight, x, rows and norm are set, and points `Gemm::added` to
// them. The result owns their memory. Row r of the GEMM has the adapter of the batch's row `first` + r.
Tensor add_low_rank(const Launch& launch, Gemm& p, const LowRank& low_rank, int64_t first, const Tensor& like);

}  // namespace higgs_native::cuda
