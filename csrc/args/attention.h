// The checked arguments of qkv_rope_cache and attention.
#pragma once

#include <algorithm>
#include <bit>

#include "args/packed_weight.h"

namespace higgs_native {

// The shapes of the caches, [pages, heads, page_size, head_dim], and of the page table, [slots, max_pages].
struct CacheShape {
  int64_t pages, heads, page_size, head_dim, slots, max_pages;

  int64_t max_length() const { return max_pages * page_size; }  // of a sequence
  int page_shift() const { return std::countr_zero(static_cast<uint64_t>(page_size)); }
};

inline CacheShape check_caches(
    const char* op, const Tensor& key_cache, const Tensor& value_cache, const Tensor& page_table) {
  check_weight(op, "key_cache", key_cache, {kAnySize, kAnySize, kAnySize, kAnySize});
  check_tensor(op, "page_table", page_table, ScalarType::Int, {kAnySize, kAnySize});
  const CacheShape c = {key_cache.size(0), key_cache.size(1),  key_cache.size(2),
                        key_cache.size(3), page_table.size(0), page_table.size(1)};
  HIGGS_CHECK(c.heads > 0, op, ": key_cache must have at least one KV head, got ", shape_text(key_cache));
  HIGGS_CHECK(
      c.page_size == 16 || c.page_size == 32 || c.page_size == 64, op,
      ": key_cache must have 16, 32 or 64 positions per page, got ", c.page_size);
  check_tensor(op, "value_cache", value_cache, key_cache.scalar_type(), {c.pages, c.heads, c.page_size, c.head_dim});
  return c;
}

struct QkvRopeCache {
  CacheShape cache;
  PackedWeight weight;
  int64_t rows, query_heads;
};

// The CPU checks the values of `page_table`, `slots`, `positions` and `cache_positions`.
inline QkvRopeCache check_qkv_rope_cache(
    const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const Tensor& x, const Tensor& text_norm,
    const Tensor& audio_norm, const Tensor& qkv_weight, const OptionalTensor& qkv_scales, const Tensor& rope_table,
    const Tensor& page_table, const Tensor& slots, const Tensor& positions, const Tensor& cache_positions,
    int64_t num_text_rows, const OptionalTensor& query_norm, const OptionalTensor& key_norm) {
  const char* op = "qkv_rope_cache";
  check_devices(
      op, {{"query", query},
           {"key_cache", key_cache},
           {"value_cache", value_cache},
           {"x", x},
           {"text_norm", text_norm},
           {"audio_norm", audio_norm},
           {"qkv_weight", qkv_weight},
           {"qkv_scales", qkv_scales},
           {"rope_table", rope_table},
           {"page_table", page_table},
           {"slots", slots},
           {"positions", positions},
           {"cache_positions", cache_positions},
           {"query_norm", query_norm},
           {"key_norm", key_norm}});
  check_tensor(op, "x", x, ScalarType::Float, {kAnySize, kAnySize});
  const int64_t rows = x.size(0), hidden = x.size(1);
  const CacheShape cache = check_caches(op, key_cache, value_cache, page_table);
  const int64_t head_dim = cache.head_dim;
  HIGGS_CHECK(head_dim % 2 == 0, op, ": key_cache must have an even head_dim, got ", head_dim);
  const int64_t kv_width = cache.heads * head_dim;
  check_tensor(op, "query", query, ScalarType::Float, {rows, kAnySize});
  const int64_t query_heads = query.size(1) / std::max<int64_t>(head_dim, 1);
  HIGGS_CHECK(
      query_heads > 0 && query.size(1) == query_heads * head_dim && query_heads % cache.heads == 0, op,
      ": query must have a multiple of ", kv_width, " columns (", cache.heads, " KV heads of dimension ", head_dim,
      "), got ", query.size(1));
  const int64_t all_heads = query_heads + 2 * cache.heads;
  const PackedWeight weight =
      check_packed_weight(op, "qkv_weight", qkv_weight, "qkv_scales", qkv_scales, all_heads * head_dim, hidden);
  check_weight(op, "text_norm", text_norm, {hidden});
  check_tensor(op, "audio_norm", audio_norm, text_norm.scalar_type(), {hidden});
  if (query_norm) check_tensor(op, "query_norm", *query_norm, text_norm.scalar_type(), {head_dim});
  if (key_norm) check_tensor(op, "key_norm", *key_norm, text_norm.scalar_type(), {head_dim});
  check_tensor(op, "rope_table", rope_table, ScalarType::Float, {kAnySize, head_dim});
  check_tensor(op, "slots", slots, ScalarType::Int, {rows});
  check_tensor(op, "positions", positions, ScalarType::Int, {rows});
  check_tensor(op, "cache_positions", cache_positions, ScalarType::Int, {rows});
  check_text_rows(op, num_text_rows, rows);
  return {cache, weight, rows, query_heads};
}

struct Attention {
  CacheShape cache;
  int64_t rows, group;  // query heads that share a KV head
};

inline Attention check_attention(
    const Tensor& out, const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
    const Tensor& page_table, const Tensor& slots, const Tensor& cache_positions) {
  const char* op = "attention";
  check_devices(
      op, {{"out", out},
           {"query", query},
           {"key_cache", key_cache},
           {"value_cache", value_cache},
           {"page_table", page_table},
           {"slots", slots},
           {"cache_positions", cache_positions}});
  const CacheShape cache = check_caches(op, key_cache, value_cache, page_table);
  const int64_t kv_width = cache.heads * cache.head_dim;
  check_tensor(op, "query", query, ScalarType::Float, {kAnySize, kAnySize});
  const int64_t rows = query.size(0), group = query.size(1) / std::max<int64_t>(kv_width, 1);
  HIGGS_CHECK(
      group > 0 && query.size(1) == group * kv_width, op, ": query must have a multiple of ", kv_width, " columns (",
      cache.heads, " KV heads of dimension ", cache.head_dim, "), got ", query.size(1));
  check_tensor(op, "out", out, ScalarType::Float, {rows, query.size(1)});
  check_tensor(op, "slots", slots, ScalarType::Int, {rows});
  check_tensor(op, "cache_positions", cache_positions, ScalarType::Int, {rows});
  return {cache, rows, group};
}

}  // namespace higgs_native
