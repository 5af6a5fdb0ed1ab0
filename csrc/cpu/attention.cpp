// qkv_rope_cache: RMSNorm, the projection to query, key and value, RMSNorm of query and key heads if they have one,
//                 rotary embedding, and the write into the KV cache.
// attention: softmax(scale * q K^T) V of every row over its own sequence, up to and including its own cache position.
//
// The cache is [pages, KV heads, page size, head_dim]: a page holds consecutive positions of a sequence, and the page
// table [slots, max pages] says which pages a sequence has. Attention is computed in splits of kSplit positions,
// whatever the page size. With few rows, the splits of a sequence go to several threads; they are merged in order
// either way. So the result depends neither on the batch nor on the threads nor on the pages.
// Bytes moved: the QKV weight once for up to 240 rows (512 by tiles); the keys and values of each row's sequence once.
#include "cpu/attention_kernels.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>

#include "args/attention.h"
#include "common/softmax_state.h"
#include "cpu/decoder.h"
#include "cpu/low_rank.h"

namespace higgs_native::cpu {

namespace {

// Returns the values after checking 0 <= value < limit for each.
const int32_t* check_indices(const char* op, const char* name, const Tensor& t, int64_t limit) {
  const int64_t rows = t.size(0);
  const int32_t* values = t.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < rows; ++i) {
    HIGGS_CHECK(
        values[i] >= 0 && values[i] < limit, op, ": ", name, "[", i, "] must be between 0 and ", limit - 1, ", got ",
        values[i]);
  }
  return values;
}

// The pages of each sequence.
struct PageTable {
  const int32_t* pages;  // [slots, max_pages]
  int64_t max_pages;

  PageTable(const Tensor& t) : pages(t.const_data_ptr<int32_t>()), max_pages(t.size(1)) {}

  const int32_t* of(int64_t slot) const { return pages + slot * max_pages; }

  // Checks that page i of the sequence is one of `limit`.
  void check(const char* op, int64_t slot, int64_t i, int64_t limit) const {
    const int32_t page = of(slot)[i];
    HIGGS_CHECK(
        page >= 0 && page < limit, op, ": page_table[", slot, ", ", i, "] must be between 0 and ", limit - 1, ", got ",
        page);
  }
};

}  // namespace

void qkv_rope_cache_cpu(
    const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const Tensor& x, const Tensor& text_norm,
    const Tensor& audio_norm, double eps, const Tensor& qkv_weight, const OptionalTensor& qkv_scales,
    const Tensor& rope_table, const Tensor& page_table, const Tensor& slots, const Tensor& positions,
    const Tensor& cache_positions, int64_t num_text_rows, const OptionalTensor& query_norm,
    const OptionalTensor& key_norm, const LowRank& low_rank) {
  const char* op = "qkv_rope_cache";
  const QkvRopeCache checked = check_qkv_rope_cache(
      query, key_cache, value_cache, x, text_norm, audio_norm, qkv_weight, qkv_scales, rope_table, page_table, slots,
      positions, cache_positions, num_text_rows, query_norm, key_norm);
  // Not a structured binding: Clang before 16 can't capture one.
  const CacheShape& cache = checked.cache;
  const PackedWeight& weight = checked.weight;
  const int64_t rows = checked.rows, query_heads = checked.query_heads;
  const int64_t head_dim = cache.head_dim;
  const int32_t* slot = check_indices(op, "slots", slots, cache.slots);
  const int32_t* position = check_indices(op, "positions", positions, rope_table.size(0));
  const int32_t* cache_position = check_indices(op, "cache_positions", cache_positions, cache.max_length());
  const PageTable pages(page_table);
  for (int64_t row = 0; row < rows; ++row) {
    pages.check(op, slot[row], cache_position[row] / cache.page_size, cache.pages);
  }
  if (rows == 0) return;

  struct Activations;
  struct Projected;
  const RowNorm norm = {text_norm, audio_norm, num_text_rows, static_cast<float>(eps)};
  float* projected = scratch<Projected>(rows * weight.n);
  const float* states = x.const_data_ptr<float>();
  const LowRankSum added(low_rank, states, 0, rows, weight.n, weight.k, &norm);
  gemm(projected, weight, pack_activations<Activations>(weight, states, rows, &norm), rows, nullptr, &added);
  const float* angles = rope_table.const_data_ptr<float>();
  float* queries = query.mutable_data_ptr<float>();
  with_weight_type(key_cache, [&](auto* keys_const) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(keys_const)>>;
    T* keys = static_cast<T*>(key_cache.mutable_data_ptr());
    T* values = static_cast<T*>(value_cache.mutable_data_ptr());
    for_ranges(rows, 4 * weight.n, [&](int64_t begin, int64_t end) {
      const AttentionKernels& kernels = attention_kernels();
      for (int64_t row = begin; row < end; ++row) {
        float* from = projected + row * weight.n;
        const float* row_angles = angles + position[row] * head_dim;
        for (int64_t head = 0; head < query_heads; ++head, from += head_dim) {
          if (query_norm) rms_norm(from, from, *query_norm, head_dim, norm.eps);
          kernels.f32.rotate(queries + (row * query_heads + head) * head_dim, from, row_angles, head_dim);
        }
        const int64_t page = pages.of(slot[row])[cache_position[row] / cache.page_size];
        const int64_t at = (page * cache.heads * cache.page_size + cache_position[row] % cache.page_size) * head_dim;
        for (int64_t head = 0; head < cache.heads; ++head, from += head_dim) {
          if (key_norm) rms_norm(from, from, *key_norm, head_dim, norm.eps);
          kernels.typed<T>().rotate(keys + at + head * cache.page_size * head_dim, from, row_angles, head_dim);
        }
        for (int64_t head = 0; head < cache.heads; ++head, from += head_dim) {
          kernels.typed<T>().store(values + at + head * cache.page_size * head_dim, from, head_dim);
        }
      }
    });
  });
}

namespace {

void qkv_rope_cache_registered(
    const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const Tensor& x, const Tensor& text_norm,
    const Tensor& audio_norm, double eps, const Tensor& qkv_weight, const OptionalTensor& qkv_scales,
    const Tensor& rope_table, const Tensor& page_table, const Tensor& slots, const Tensor& positions,
    const Tensor& cache_positions, int64_t num_text_rows, const OptionalTensor& query_norm,
    const OptionalTensor& key_norm) {
  qkv_rope_cache_cpu(
      query, key_cache, value_cache, x, text_norm, audio_norm, eps, qkv_weight, qkv_scales, rope_table, page_table,
      slots, positions, cache_positions, num_text_rows, query_norm, key_norm, {});
}

// One split's result, or that of several merged ones, in one block of memory: the sums of weighted values
// [group, head_dim], then the softmax states [group].
struct SplitResult {
  float* sums;
  SoftmaxState* states;

  SplitResult(float* memory, int64_t group, int64_t head_dim)
      : sums(memory), states(reinterpret_cast<SoftmaxState*>(memory + group * head_dim)) {}
  static int64_t size(int64_t group, int64_t head_dim) { return group * (head_dim + 2); }
};

// Merges the next split into those before it.
void merge_split(const SplitResult& all, const SplitResult& next, int64_t group, int64_t head_dim) {
  for (int64_t g = 0; g < group; ++g) {
    const SoftmaxMerge merged = merge(all.states[g], next.states[g]);
    for (int64_t i = g * head_dim; i < (g + 1) * head_dim; ++i) all.sums[i] = merged.sum(all.sums[i], next.sums[i]);
    all.states[g] = merged.state;
  }
}

void finish(float* out, const SplitResult& all, int64_t group, int64_t head_dim) {
  for (int64_t g = 0; g < group; ++g) {
    for (int64_t i = g * head_dim; i < (g + 1) * head_dim; ++i) out[i] = all.sums[i] / all.states[g].total;
  }
}

// Attention with keys and values of type T. An item is a row and a KV head.
template <typename T>
struct AttentionRun {
  float* out;          // [rows, heads * group * head_dim]
  const float* query;  // likewise
  const T *keys, *values;
  PageTable pages;
  const int32_t *slot, *cache_position;  // [rows]
  CacheShape cache;
  int64_t rows, group;
  float scale;

  int64_t items() const { return rows * cache.heads; }
  int64_t last_split(int64_t item) const { return cache_position[item / cache.heads] / kSplit; }
  float* out_of(int64_t item) const { return out + item * group * cache.head_dim; }
  int64_t result_size() const { return SplitResult::size(group, cache.head_dim); }
  SplitResult result(float* memory) const { return SplitResult(memory, group, cache.head_dim); }

  void attend(int64_t item, int64_t split, const SplitResult& to) const {
    struct Scores;
    const int64_t row = item / cache.heads, head = item % cache.heads, begin = split * kSplit;
    const int64_t count = std::min(kSplit, cache_position[row] + 1 - begin);
    const int64_t at = head * cache.page_size * cache.head_dim;
    attention_kernels().typed<T>().attend(
        {query + item * group * cache.head_dim, keys + at, values + at, pages.of(slot[row]) + begin / cache.page_size,
         cache.heads * cache.page_size * cache.head_dim, cache.page_size, group, cache.head_dim, count, scale,
         scratch<Scores>(group * kSplit), to.sums, to.states});
  }

  // A thread takes all splits of an item.
  void run_serial(int64_t max_length) const {
    for_ranges(items(), 2 * max_length * group * cache.head_dim, [&](int64_t begin, int64_t end) {
      struct Pair;
      float* memory = scratch<Pair>(2 * result_size());
      const SplitResult all = result(memory), next = result(memory + result_size());
      for (int64_t item = begin; item < end; ++item) {
        attend(item, 0, all);
        for (int64_t split = 1; split <= last_split(item); ++split) {
          attend(item, split, next);
          merge_split(all, next, group, cache.head_dim);
        }
        finish(out_of(item), all, group, cache.head_dim);
      }
    });
  }

  // Threads share the splits of an item; the calling thread merges them.
  void run_split(int64_t max_splits) const {
    struct Results;
    float* results = scratch<Results>(items() * max_splits * result_size());
    for_ranges(items() * max_splits, 2 * kSplit * group * cache.head_dim, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t item = i / max_splits, split = i % max_splits;
        if (split <= last_split(item)) attend(item, split, result(results + i * result_size()));
      }
    });
    for (int64_t item = 0; item < items(); ++item) {
      float* first = results + item * max_splits * result_size();
      const SplitResult all = result(first);
      for (int64_t split = 1; split <= last_split(item); ++split) {
        merge_split(all, result(first + split * result_size()), group, cache.head_dim);
      }
      finish(out_of(item), all, group, cache.head_dim);
    }
  }
};

}  // namespace

void attention_cpu(
    const Tensor& out, const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
    const Tensor& page_table, const Tensor& slots, const Tensor& cache_positions, double scale) {
  const char* op = "attention";
  const Attention checked = check_attention(out, query, key_cache, value_cache, page_table, slots, cache_positions);
  const CacheShape& cache = checked.cache;
  const int64_t rows = checked.rows, group = checked.group;
  const int32_t* slot = check_indices(op, "slots", slots, cache.slots);
  const int32_t* cache_position = check_indices(op, "cache_positions", cache_positions, cache.max_length());
  const PageTable pages(page_table);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i <= cache_position[row] / cache.page_size; ++i) pages.check(op, slot[row], i, cache.pages);
  }
  if (rows == 0) return;

  const int64_t max_length = *std::max_element(cache_position, cache_position + rows) + int64_t{1};
  const int64_t max_splits = (max_length - 1) / kSplit + 1;
  with_weight_type(key_cache, [&](auto* keys) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(keys)>>;
    const AttentionRun<T> run = {
        out.mutable_data_ptr<float>(),
        query.const_data_ptr<float>(),
        keys,
        static_cast<const T*>(value_cache.const_data_ptr()),
        pages,
        slot,
        cache_position,
        cache,
        rows,
        group,
        static_cast<float>(scale)};
    if (max_splits > 1 && run.items() < 4 * num_threads()) run.run_split(max_splits);
    else run.run_serial(max_length);
  });
}

}  // namespace higgs_native::cpu

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) {
  m.impl("qkv_rope_cache", TORCH_BOX(&higgs_native::cpu::qkv_rope_cache_registered));
  m.impl("attention", TORCH_BOX(&higgs_native::cpu::attention_cpu));
}
