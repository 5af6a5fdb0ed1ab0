// Weight-streaming products: out[r][n] = sum_k x[r][k] * weight[n][k], float32 accumulation.
//
// The weight is row-major [n, k] in float32 or bfloat16, x is float32. Up to kStreamedRows rows go straight from memory:
// each step loads one vector of each of several weight rows, widens it, and multiplies it with a vector of each of kGroup
// rows of x, so the weight is read once and only read bandwidth counts. More rows are compute-bound: blocks of kBlockN weight rows by
// kBlockK columns are widened into the cache once and meet the rows of x in groups of kGroup, the accumulators of all
// groups waiting in the cache between blocks. Bytes moved: the weight, once for every kBlockRows rows.
#include "cpu/linear_kernels.h"

#include "cpu/simd.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

namespace {

// Registers: kGroup * 4 accumulators, kGroup vectors of x, one of the weight; 16 in all, 32 with AVX-512.
constexpr int kGroup = kWidth == 16 ? 6 : 3;
constexpr int kStreamedRows = 16;
constexpr int kBlockN = 16;
constexpr int kBlockK = 1024;
constexpr int kBlockRows = 96;
constexpr int kPrefetchBytes = 1024;

// acc[m][n] += x[m] * weight[n], one vector of each of MR rows of x and NR rows of the weight.
template <int MR, int NR, typename T>
HIGGS_INLINE void multiply(
    Vec (&acc)[MR][NR], const float* x, int64_t x_stride, const T* weight, int64_t weight_stride) {
  Vec xs[MR];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) xs[m] = load(x + m * x_stride);
#pragma GCC unroll 8
  for (int n = 0; n < NR; ++n) {
    const Vec w = load(weight + n * weight_stride);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) acc[m][n] += xs[m] * w;
  }
}

// The same over all of k, with a scalar tail for what fills no vector.
template <int MR, int NR, bool PREFETCH, typename T>
HIGGS_INLINE void accumulate(
    Vec (&acc)[MR][NR], float (&tail)[MR][NR], const float* x, int64_t x_stride, const T* weight, int64_t weight_stride,
    int64_t k) {
  constexpr int kLine = 64 / sizeof(T);  // elements in a cache line, which one prefetch fetches
  int64_t i = 0;
  for (; i + kLine <= k; i += kLine) {
    if constexpr (PREFETCH) {
#pragma GCC unroll 8
      for (int n = 0; n < NR; ++n) {
        __builtin_prefetch(reinterpret_cast<const char*>(weight + n * weight_stride + i) + kPrefetchBytes);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < kLine; v += kWidth) {
      multiply<MR, NR>(acc, x + i + v, x_stride, weight + i + v, weight_stride);
    }
  }
  for (; i + kWidth <= k; i += kWidth) multiply<MR, NR>(acc, x + i, x_stride, weight + i, weight_stride);
  for (; i < k; ++i) {
    for (int m = 0; m < MR; ++m) {
      for (int n = 0; n < NR; ++n) {
        tail[m][n] = multiply_add(x[m * x_stride + i], to_float(weight[n * weight_stride + i]), tail[m][n]);
      }
    }
  }
}

template <typename T>
HIGGS_INLINE void write(const ProductBlock<T>& p, int64_t row, int64_t n, float value) {
  const int64_t at = row * p.out_stride + n;
  p.out[at] = p.residual ? p.residual[at] + value : value;
}

template <int MR, int NR, typename T>
HIGGS_INLINE void stream(const ProductBlock<T>& p, int64_t row, int64_t n) {
  Vec acc[MR][NR] = {};
  float tail[MR][NR] = {};
  accumulate<MR, NR, true>(acc, tail, p.x + row * p.k, p.k, p.weight + n * p.k, p.k, p.k);
  for (int i = 0; i < NR; ++i) {
    for (int m = 0; m < MR; ++m) write(p, row + m, n + i, sum(acc[m][i]) + tail[m][i]);
  }
}

// NR weight rows against all rows of x; after the first group they come from the cache.
template <int NR, typename T>
HIGGS_INLINE void stream_rows(const ProductBlock<T>& p, int64_t n) {
  int64_t row = 0;
  for (; row + kGroup <= p.rows; row += kGroup) stream<kGroup, NR>(p, row, n);
  for (; row + 2 <= p.rows; row += 2) stream<2, NR>(p, row, n);
  for (; row < p.rows; ++row) stream<1, NR>(p, row, n);
}

template <typename T>
void streamed(const ProductBlock<T>& p) {
  int64_t n = 0;
  if (p.rows == 1) {
    for (; n + 8 <= p.n; n += 8) stream<1, 8>(p, 0, n);
  }
  for (; n + 4 <= p.n; n += 4) stream_rows<4>(p, n);
  for (; n < p.n; ++n) stream_rows<1>(p, n);
}

// One group of MR rows against 4 weight rows of a widened block; the accumulators continue where they were left.
template <int MR>
HIGGS_INLINE void continue_group(
    Vec* waiting, float* waiting_tail, const float* x, int64_t x_stride, const float* weight, int64_t k) {
  Vec acc[MR][4];
  float tail[MR][4];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < 4; ++n) {
      acc[m][n] = waiting[m * kBlockN + n];
      tail[m][n] = waiting_tail[m * kBlockN + n];
    }
  }
  accumulate<MR, 4, false>(acc, tail, x, x_stride, weight, kBlockK, k);
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < 4; ++n) {
      waiting[m * kBlockN + n] = acc[m][n];
      waiting_tail[m * kBlockN + n] = tail[m][n];
    }
  }
}

template <typename T>
void blocked(const ProductBlock<T>& p) {
  alignas(64) float widened[kBlockN * kBlockK];
  alignas(64) Vec acc[kBlockRows * kBlockN];
  alignas(64) float tail[kBlockRows * kBlockN];
  for (int64_t row0 = 0; row0 < p.rows; row0 += kBlockRows) {
    const int64_t rows = p.rows - row0 < kBlockRows ? p.rows - row0 : kBlockRows;
    for (int64_t n0 = 0; n0 < p.n; n0 += kBlockN) {
      const int64_t count = p.n - n0 < kBlockN ? p.n - n0 : kBlockN;
      const int64_t padded = (count + 3) / 4 * 4;
      memset(acc, 0, sizeof(Vec) * rows * kBlockN);
      memset(tail, 0, sizeof(float) * rows * kBlockN);
      for (int64_t k0 = 0; k0 < p.k; k0 += kBlockK) {
        const int64_t k = p.k - k0 < kBlockK ? p.k - k0 : kBlockK;
        for (int64_t n = 0; n < padded; ++n) {
          float* to = widened + n * kBlockK;
          if (n >= count) {
            memset(to, 0, sizeof(float) * k);
            continue;
          }
          const T* from = p.weight + (n0 + n) * p.k + k0;
          int64_t i = 0;
          for (; i + kWidth <= k; i += kWidth) store(to + i, load(from + i));
          for (; i < k; ++i) to[i] = to_float(from[i]);
        }
        int64_t row = 0;
        const float* x = p.x + row0 * p.k + k0;
        for (; row + kGroup <= rows; row += kGroup) {
          for (int64_t n = 0; n < padded; n += 4) {
            continue_group<kGroup>(
                acc + row * kBlockN + n, tail + row * kBlockN + n, x + row * p.k, p.k, widened + n * kBlockK, k);
          }
        }
        for (; row < rows; ++row) {
          for (int64_t n = 0; n < padded; n += 4) {
            continue_group<1>(
                acc + row * kBlockN + n, tail + row * kBlockN + n, x + row * p.k, p.k, widened + n * kBlockK, k);
          }
        }
      }
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t n = 0; n < count; ++n) {
          write(p, row0 + row, n0 + n, sum(acc[row * kBlockN + n]) + tail[row * kBlockN + n]);
        }
      }
    }
  }
}

template <typename T>
void product(const ProductBlock<T>& p) {
  if (p.rows <= kStreamedRows) streamed(p);
  else blocked(p);
}

template <typename T>
void rms_norm(float* out, const float* x, const T* weight, int64_t k, float eps) {
  Vec squares = {};
  float tail = 0;
  int64_t i = 0;
  for (; i + kWidth <= k; i += kWidth) squares += load(x + i) * load(x + i);
  for (; i < k; ++i) tail += x[i] * x[i];
  const float scale = 1.0f / __builtin_sqrtf((sum(squares) + tail) / static_cast<float>(k) + eps);
  for (i = 0; i + kWidth <= k; i += kWidth) store(out + i, load(x + i) * splat(scale) * load(weight + i));
  for (; i < k; ++i) out[i] = x[i] * scale * to_float(weight[i]);
}

void silu_mul(float* gate, const float* up, int64_t n) {
  for (int64_t i = 0; i < n; i += kWidth) {
    const int64_t count = n - i < kWidth ? n - i : kWidth;
    Vec g = {}, u = {};
    memcpy(&g, gate + i, count * sizeof(float));
    memcpy(&u, up + i, count * sizeof(float));
    Vec y = g / (splat(1.f) + exp(-g)) * u;
    memcpy(gate + i, &y, count * sizeof(float));
  }
}

}  // namespace

const LinearKernels linear_kernels = {
    {product<float>, rms_norm<float>},
    {product<bf16>, rms_norm<bf16>},
    silu_mul,
};

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
