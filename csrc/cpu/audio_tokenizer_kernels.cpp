// Snake, x + sin(alpha x)^2 / alpha, and the convolution of a tile of columns.
//
// Snake: sin^2 has the period pi, so y = alpha x is reduced to y - n pi with |y - n pi| <= pi / 2 (pi in three parts,
// so that no digit is lost), and an odd polynomial of degree 9 gives the sine, whose sign does not matter.
// Convolution: 4 rows by up to 3 vectors of columns (6 with 32 registers) stay in registers. Each step broadcasts one
// weight of each row and multiplies it with the columns shifted by its tap. Channels are summed in blocks: a block's
// weights stay in L1 for all columns, and separate sums keep rounding errors small.
#include "cpu/audio_tokenizer_kernels.h"

#include <math.h>

#include "cpu/simd/simd.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

namespace {

constexpr int kRows = 4;
constexpr int kVectors = kRegisters == 32 ? 6 : 3;
constexpr int64_t kChannelBlock = 64;
constexpr int64_t kSnakeBlock = 64;    // values per check of the range
constexpr float kReducible = 20000.f;  // above it, multiples of pi are no longer exact

HIGGS_INLINE Vec sin_squared(Vec y) {
  const Vec magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  Vec n = (y * splat(0.318309886f) + magic) - magic;
  Vec r = y - n * splat(3.140625f);
  r = r - n * splat(9.6750259399e-4f);
  r = r - n * splat(1.509958025e-7f);
  Vec z = r * r;
  Vec p = splat(2.59990315e-6f);
  p = p * z + splat(-1.98065478e-4f);
  p = p * z + splat(8.33301619e-3f);
  p = p * z + splat(-1.66666567e-1f);
  Vec s = r + r * z * p;
  return s * s;
}

void snake(float* out, const float* x, float alpha, int64_t n) {
  const float inverse = 1.f / (alpha + 1e-9f);
  const Vec a = splat(alpha), scale = splat(inverse), limit = splat(kReducible);
  for (int64_t i = 0; i < n; i += kSnakeBlock, x += kSnakeBlock, out += kSnakeBlock) {
    const int64_t count = n - i < kSnakeBlock ? n - i : kSnakeBlock;
    const int64_t whole = count / kWidth * kWidth;
    Vec last = {};
    memcpy(&last, x + whole, (count - whole) * sizeof(float));
    IntVec in_range = (last * a < limit) & (last * a > -limit);
    for (int64_t j = 0; j < whole; j += kWidth) {
      Vec y = load(x + j) * a;
      in_range &= (y < limit) & (y > -limit);
    }
    int32_t all = -1;
    for (int lane = 0; lane < kWidth; ++lane) all &= in_range[lane];
    if (all) {
      for (int64_t j = 0; j < whole; j += kWidth) {
        Vec value = load(x + j);
        store(out + j, value + scale * sin_squared(value * a));
      }
      last += scale * sin_squared(last * a);
      memcpy(out + whole, &last, (count - whole) * sizeof(float));
    } else {
      for (int64_t j = 0; j < count; ++j) {
        const float s = sinf(alpha * x[j]);
        out[j] = x[j] + inverse * (s * s);
      }
    }
  }
}

// kTaps: the number of taps, or 0 if it is known at run time only.
template <int R, int N, int kTaps>
HIGGS_INLINE void convolve_block(const ConvolutionTile& p, int64_t row, int64_t t, int64_t c0, int64_t c1) {
  const int64_t taps = kTaps ? kTaps : p.taps;
  Vec acc[R][N] = {};
  const float* weight[R];
  for (int r = 0; r < R; ++r) weight[r] = p.weight + ((row + r) * p.channels + c0) * taps;
  const float* x = p.x + c0 * p.x_stride + t;
  for (int64_t c = c0; c < c1; ++c, x += p.x_stride) {
    const float* column = x;
#pragma GCC unroll 1
    for (int64_t k = 0; k < taps; ++k, column += p.dilation) {
      Vec columns[N];
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) columns[v] = load(column + v * kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec w = splat(weight[r][k]);
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) acc[r][v] += w * columns[v];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) weight[r] += taps;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) {
      float* out = p.out + (row + r) * p.out_stride + t + v * kWidth;
      store(out, load(out) + acc[r][v]);
    }
  }
}

// Convolves `vectors` vectors of columns, 1 to kVectors.
template <int R, int kTaps, int N = 1>
HIGGS_INLINE void convolve_vectors(
    const ConvolutionTile& p, int64_t row, int64_t t, int64_t c0, int64_t c1, int64_t vectors) {
  if constexpr (N < kVectors) {
    if (vectors != N) return convolve_vectors<R, kTaps, N + 1>(p, row, t, c0, c1, vectors);
  }
  convolve_block<R, N, kTaps>(p, row, t, c0, c1);
}

// Columns in equal shares of at most kVectors vectors: 4 vectors are taken as 2 and 2, not as 3 and 1, since a chain of
// additions alone would be bound by latency.
template <int R, int kTaps>
HIGGS_INLINE void convolve_rows(const ConvolutionTile& p, int64_t row, int64_t c0, int64_t c1) {
  int64_t vectors = p.columns / kWidth;
  for (int64_t t = 0; vectors > 0;) {
    const int64_t blocks = (vectors + kVectors - 1) / kVectors;
    const int64_t n = (vectors + blocks - 1) / blocks;
    convolve_vectors<R, kTaps>(p, row, t, c0, c1, n);
    t += n * kWidth;
    vectors -= n;
  }
}

template <int kTaps>
void convolve_taps(const ConvolutionTile& p) {
  for (int64_t c0 = 0; c0 < p.channels; c0 += kChannelBlock) {
    const int64_t c1 = p.channels - c0 < kChannelBlock ? p.channels : c0 + kChannelBlock;
    int64_t row = 0;
    for (; row + kRows <= p.rows; row += kRows) convolve_rows<kRows, kTaps>(p, row, c0, c1);
    for (; row < p.rows; ++row) convolve_rows<1, kTaps>(p, row, c0, c1);
  }
}

void convolve(const ConvolutionTile& p) {
  switch (p.taps) {
    case 1: return convolve_taps<1>(p);
    case 2: return convolve_taps<2>(p);
    case 7: return convolve_taps<7>(p);
    default: return convolve_taps<0>(p);
  }
}

}  // namespace

const AudioTokenizerKernels audio_tokenizer_kernels = {snake, convolve};

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
