// One split of grouped-query attention: the few query heads that share a KV head, over up to kSplit cache positions.
//
// First the scores: a dot product over head_dim per position, several positions at a time so that their chains overlap.
// Then their maximum and exponentials. Then the weighted sum of the values, whose accumulators stay in registers for a
// part of head_dim. Each key and value is read once for all heads of the group, and prefetched a page ahead: pages lie
// anywhere, so the hardware's prefetcher does not find the next one.
#include "cpu/attention_kernels.h"

#include "cpu/simd/simd.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

namespace {

constexpr int kPositions = 4;
constexpr int kParts = kRegisters / 4;  // vectors of a value per pass over the positions

// Calls f(rows, next, position, count) for each page of the split, in order: `rows` are the keys or values of `count`
// positions, the first of which is `position` of the split. `next` are those of the next page, or `after` at the end.
template <typename T, typename F>
HIGGS_INLINE void for_pages(const AttentionSplit<T>& a, const T* base, const T* after, const F& f) {
  const int32_t* page = a.pages;
  const T* rows = base + *page * a.page_stride;
  for (int64_t position = 0; position < a.count; position += a.page_size) {
    const int64_t rest = a.count - position;
    const T* next = rest > a.page_size ? base + *++page * a.page_stride : after;
    f(rows, next, position, rest < a.page_size ? rest : a.page_size);
    rows = next;
  }
}

template <typename T>
HIGGS_INLINE void prefetch(const T* row, int64_t dims) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < dims; i += kLine) __builtin_prefetch(row + i);
}

// The dot product of dimensions [begin, end).
template <typename T>
float tail_score(const float* query, const T* key, int64_t begin, int64_t end) {
  float score = 0;
  for (int64_t i = begin; i < end; ++i) score += query[i] * to_float(key[i]);
  return score;
}

// scores[h][p] for heads h < G and positions p < P, whose keys begin at `key`
template <int G, int P, typename T>
HIGGS_INLINE void score(const AttentionSplit<T>& a, int64_t head, const T* key, int64_t position) {
  Vec acc[G][P];
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) acc[g][p] = Vec{};
  }
  int64_t i = 0;
  for (; i + kWidth <= a.head_dim; i += kWidth) {
    Vec q[G];
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) q[g] = load(a.query + (head + g) * a.head_dim + i);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      Vec k = load(key + p * a.head_dim + i);
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) acc[g][p] += q[g] * k;
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      float score = sum(acc[g][p]);
      if (i < a.head_dim) {
        score += tail_score(a.query + (head + g) * a.head_dim, key + p * a.head_dim, i, a.head_dim);
      }
      a.scores[(head + g) * kSplit + position + p] = score * a.scale;
    }
  }
}

template <int G, typename T>
HIGGS_INLINE void score_all(const AttentionSplit<T>& a, int64_t head) {
  const T* values = a.values + *a.pages * a.page_stride;
  for_pages(a, a.keys, values, [&](const T* keys, const T* next, int64_t position, int64_t count) {
    int64_t p = 0;
    for (; p + kPositions <= count; p += kPositions) {
      prefetch(next + p * a.head_dim, kPositions * a.head_dim);
      score<G, kPositions>(a, head, keys + p * a.head_dim, position + p);
    }
    for (; p < count; ++p) score<G, 1>(a, head, keys + p * a.head_dim, position + p);
  });
}

// Replaces scores by exp(score - maximum).
HIGGS_INLINE SoftmaxState softmax(float* scores, int64_t count) {
  // The rest of the last vector is exp(-inf) = 0.
  for (int64_t p = count; p % kWidth; ++p) scores[p] = -__builtin_inff();
  Vec max = load(scores);
  for (int64_t p = kWidth; p < count; p += kWidth) max = larger(load(scores + p), max);
  const float maximum = largest(max);
  Vec sums = {};
  for (int64_t p = 0; p < count; p += kWidth) {
    Vec e = exp(load(scores + p) - splat(maximum));
    store(scores + p, e);
    sums += e;
  }
  return {maximum, sum(sums)};
}

template <int G, int D, typename T>
HIGGS_INLINE void weigh(const AttentionSplit<T>& a, int64_t head, int64_t dim) {
  Vec acc[G][D] = {};
  const T* base = a.values + dim;
  for_pages(a, base, base, [&](const T* values, const T* next, int64_t position, int64_t count) {
    const float* weights = a.scores + head * kSplit + position;
    for (int64_t p = 0; p < count; ++p) {
      prefetch(next + p * a.head_dim, D * kWidth);
      Vec weight[G];
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) weight[g] = splat(weights[g * kSplit + p]);
      // In this order all sums stay in registers beside the weights and one vector of the value.
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        const Vec v = load(values + p * a.head_dim + d * kWidth);
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) acc[g][d] += weight[g] * v;
      }
    }
  });
  for (int g = 0; g < G; ++g) {
    for (int d = 0; d < D; ++d) store(a.sums + (head + g) * a.head_dim + dim + d * kWidth, acc[g][d]);
  }
}

template <int G, typename T>
HIGGS_INLINE void weigh_all(const AttentionSplit<T>& a, int64_t head) {
  int64_t dim = 0;
  for (; dim + kParts * kWidth <= a.head_dim; dim += kParts * kWidth) weigh<G, kParts>(a, head, dim);
  for (; dim + kWidth <= a.head_dim; dim += kWidth) weigh<G, 1>(a, head, dim);
  for (; dim < a.head_dim; ++dim) {
    for (int g = 0; g < G; ++g) {
      float total = 0;
      const T* base = a.values + dim;
      for_pages(a, base, base, [&](const T* values, const T*, int64_t position, int64_t count) {
        const float* weights = a.scores + (head + g) * kSplit + position;
        for (int64_t p = 0; p < count; ++p) total += weights[p] * to_float(values[p * a.head_dim]);
      });
      a.sums[(head + g) * a.head_dim + dim] = total;
    }
  }
}

template <int G, typename T>
void attend_heads(const AttentionSplit<T>& a, int64_t head) {
  score_all<G>(a, head);
  for (int g = 0; g < G; ++g) a.states[head + g] = softmax(a.scores + (head + g) * kSplit, a.count);
  weigh_all<G>(a, head);
}

template <typename T>
void attend(const AttentionSplit<T>& a) {
  int64_t head = 0;
  for (; head + 3 <= a.group; head += 3) attend_heads<3>(a, head);
  if (a.group - head == 2) attend_heads<2>(a, head);
  else if (a.group - head == 1) attend_heads<1>(a, head);
}

template <typename T>
void rotate(T* out, const float* x, const float* angles, int64_t head_dim) {
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float c = angles[i], s = angles[half + i];
    store_value(out + i, x[i] * c - x[half + i] * s);
    store_value(out + half + i, x[half + i] * c + x[i] * s);
  }
}

template <typename T>
void store_head(T* out, const float* x, int64_t head_dim) {
  for (int64_t i = 0; i < head_dim; ++i) store_value(out + i, x[i]);
}

}  // namespace

const AttentionKernels attention_kernels = {
    {attend<float>, rotate<float>, store_head<float>},
    {attend<bfloat16>, rotate<bfloat16>, store_head<bfloat16>},
    {attend<float16>, rotate<float16>, store_head<float16>},
};

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
