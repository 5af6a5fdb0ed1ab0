// qkv_rope_cache: RMSNorm, the query, key and value products, rotary embedding, and the write into the KV cache.
// attention: softmax(scale * q K^T) V of every row over its own sequence, up to and with its own place.
//
// The cache is [slots, KV heads, length, head_dim]: the positions that one KV head attends to are contiguous. Attention
// goes piece by piece of kSplit positions; pieces of a long sequence go to several threads where there are few rows, and
// are joined in their order either way, so that the result depends on neither.
// Bytes moved: the QKV weight once for up to 240 rows; the keys and values of each row's sequence once.
#include "cpu/attention_kernels.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>

#include "args/attention.h"
#include "cpu/decoder.h"
#include "cpu/linear.h"

namespace higgs_native::cpu {

namespace {

// Returns the values after checking 0 <= value < limit for each.
const int32_t* check_indices(const char* op, const char* name, const Tensor& t, int64_t limit) {
  const int64_t rows = t.size(0);
  const int32_t* values = t.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < rows; ++i) {
    STD_TORCH_CHECK(
        values[i] >= 0 && values[i] < limit, op, ": ", name, "[", i, "] must be between 0 and ", limit - 1, ", got ",
        values[i]);
  }
  return values;
}

}  // namespace

void qkv_rope_cache_cpu(
    const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const Tensor& x, const Tensor& text_norm,
    const Tensor& audio_norm, double eps, const Tensor& qkv_weight, const OptionalTensor& qkv_scales,
    const Tensor& rope_table, const Tensor& slots, const Tensor& positions, const Tensor& cache_positions,
    int64_t num_text_rows) {
  const char* op = "qkv_rope_cache";
  const auto [cache, weight, rows, query_heads] = check_qkv_rope_cache(
      query, key_cache, value_cache, x, text_norm, audio_norm, qkv_weight, qkv_scales, rope_table, slots, positions,
      cache_positions, num_text_rows);
  const int64_t head_dim = cache.head_dim;
  const int32_t* slot = check_indices(op, "slots", slots, cache.slots);
  const int32_t* position = check_indices(op, "positions", positions, rope_table.size(0));
  const int32_t* place = check_indices(op, "cache_positions", cache_positions, cache.length);
  if (rows == 0) return;

  struct Prepared;
  struct Projected;
  const RowNorm norm = {text_norm, audio_norm, num_text_rows, static_cast<float>(eps)};
  float* projected = scratch<Projected>(rows * weight.n);
  product(projected, weight, prepare<Prepared>(weight, x.const_data_ptr<float>(), rows, &norm), rows);
  const float* angles = rope_table.const_data_ptr<float>();
  float* queries = query.mutable_data_ptr<float>();
  with_weight_type(key_cache, [&](auto* keys_const) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(keys_const)>>;
    T* keys = static_cast<T*>(key_cache.mutable_data_ptr());
    T* values = static_cast<T*>(value_cache.mutable_data_ptr());
    for_ranges(rows, 4 * weight.n, [&](int64_t begin, int64_t end) {
      const AttentionKernels& kernels = attention_kernels();
      for (int64_t row = begin; row < end; ++row) {
        const float* from = projected + row * weight.n;
        const float* row_angles = angles + position[row] * head_dim;
        for (int64_t head = 0; head < query_heads; ++head, from += head_dim) {
          kernels.f32.rotate(queries + (row * query_heads + head) * head_dim, from, row_angles, head_dim);
        }
        const int64_t at = (slot[row] * cache.heads * cache.length + place[row]) * head_dim;
        for (int64_t head = 0; head < cache.heads; ++head, from += head_dim) {
          kernels.typed<T>().rotate(keys + at + head * cache.length * head_dim, from, row_angles, head_dim);
        }
        for (int64_t head = 0; head < cache.heads; ++head, from += head_dim) {
          kernels.typed<T>().place(values + at + head * cache.length * head_dim, from, head_dim);
        }
      }
    });
  });
}

namespace {

// A piece's result, in one block: out [group, head_dim], maximum [group], total [group].
struct Partial {
  float *out, *maximum, *total;
  Partial(float* memory, int64_t group, int64_t head_dim)
      : out(memory), maximum(memory + group * head_dim), total(maximum + group) {}
  static int64_t size(int64_t group, int64_t head_dim) { return group * (head_dim + 2); }
};

// Adds the next piece to what is joined so far.
void join(const Partial& all, const Partial& next, int64_t group, int64_t head_dim) {
  for (int64_t g = 0; g < group; ++g) {
    const float maximum = std::max(all.maximum[g], next.maximum[g]);
    const float keep = std::exp(all.maximum[g] - maximum), add = std::exp(next.maximum[g] - maximum);
    for (int64_t i = 0; i < head_dim; ++i) {
      all.out[g * head_dim + i] = all.out[g * head_dim + i] * keep + next.out[g * head_dim + i] * add;
    }
    all.total[g] = all.total[g] * keep + next.total[g] * add;
    all.maximum[g] = maximum;
  }
}

void finish(float* out, const Partial& all, int64_t group, int64_t head_dim) {
  for (int64_t g = 0; g < group; ++g) {
    for (int64_t i = 0; i < head_dim; ++i) out[g * head_dim + i] = all.out[g * head_dim + i] / all.total[g];
  }
}

}  // namespace

void attention_cpu(
    const Tensor& out, const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const Tensor& slots,
    const Tensor& cache_positions, double scale) {
  const char* op = "attention";
  const auto [cache, rows, group] = check_attention(out, query, key_cache, value_cache, slots, cache_positions);
  const int64_t head_dim = cache.head_dim;
  const int32_t* slot = check_indices(op, "slots", slots, cache.slots);
  const int32_t* place = check_indices(op, "cache_positions", cache_positions, cache.length);
  if (rows == 0) return;

  const float* queries = query.const_data_ptr<float>();
  float* outs = out.mutable_data_ptr<float>();
  const int64_t last_place = *std::max_element(place, place + rows);
  const int64_t pieces = last_place / kSplit + 1;
  const int64_t partial_size = Partial::size(group, head_dim);
  with_weight_type(key_cache, [&](auto* keys) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(keys)>>;
    const T* values = static_cast<const T*>(value_cache.const_data_ptr());
    struct Scores;
    auto attend = [&](int64_t row, int64_t head, int64_t piece, const Partial& to) {
      const int64_t begin = piece * kSplit;
      const int64_t count = std::min(kSplit, place[row] + 1 - begin);
      const int64_t at = ((slot[row] * cache.heads + head) * cache.length + begin) * head_dim;
      attention_kernels().typed<T>().attend(
          {queries + (row * cache.heads + head) * group * head_dim, keys + at, values + at, group, head_dim, count,
           static_cast<float>(scale), scratch<Scores>(group * kSplit), to.out, to.maximum, to.total});
    };
    auto out_of = [&](int64_t row, int64_t head) { return outs + (row * cache.heads + head) * group * head_dim; };

    if (pieces > 1 && rows * cache.heads < 4 * torch::stable::get_num_threads()) {
      struct Partials;
      float* partials = scratch<Partials>(rows * cache.heads * pieces * partial_size);
      for_ranges(rows * cache.heads * pieces, 2 * kSplit * group * head_dim, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          const int64_t row = item / pieces / cache.heads, head = item / pieces % cache.heads, piece = item % pieces;
          if (piece * kSplit > place[row]) continue;
          attend(row, head, piece, Partial(partials + item * partial_size, group, head_dim));
        }
      });
      for (int64_t item = 0; item < rows * cache.heads; ++item) {
        const int64_t row = item / cache.heads;
        const Partial all(partials + item * pieces * partial_size, group, head_dim);
        for (int64_t piece = 1; piece * kSplit <= place[row]; ++piece) {
          join(all, Partial(partials + (item * pieces + piece) * partial_size, group, head_dim), group, head_dim);
        }
        finish(out_of(row, item % cache.heads), all, group, head_dim);
      }
      return;
    }
    for_ranges(rows * cache.heads, (last_place + 1) * group * head_dim, [&](int64_t begin, int64_t end) {
      struct Pair;
      float* memory = scratch<Pair>(2 * partial_size);
      const Partial all(memory, group, head_dim), next(memory + partial_size, group, head_dim);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t row = item / cache.heads, head = item % cache.heads;
        attend(row, head, 0, all);
        for (int64_t piece = 1; piece * kSplit <= place[row]; ++piece) {
          attend(row, head, piece, next);
          join(all, next, group, head_dim);
        }
        finish(out_of(row, head), all, group, head_dim);
      }
    });
  });
}

}  // namespace higgs_native::cpu

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) {
  m.impl("qkv_rope_cache", TORCH_BOX(&higgs_native::cpu::qkv_rope_cache_cpu));
  m.impl("attention", TORCH_BOX(&higgs_native::cpu::attention_cpu));
}
