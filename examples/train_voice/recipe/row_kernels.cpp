// Kernels between the matrix products of the language model's training step on a CPU. Tensors are contiguous; rows are
// bfloat16, sums float32. Compiled by row_kernels.py.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using bfloat16 = uint16_t;

inline float widen(bfloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value) << 16); }

inline bfloat16 narrow(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<bfloat16>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// e^x within 3e-6 for x from -87 to 87, in instructions that vectorize.
inline float exponential(float x) {
  const float scaled = std::min(std::max(x * 1.44269504f, -126.0f), 126.0f);
  const float whole = std::rint(scaled);
  const float part = scaled - whole;
  const float power =
      1 +
      part * (0.69314718f + part * (0.24022651f + part * (0.05550411f + part * (0.00961813f + part * 0.00133336f))));
  return std::bit_cast<float>(std::bit_cast<int32_t>(power) + (static_cast<int32_t>(whole) << 23));
}

// Loops over `count` of `total` numbers run to here, so that none of them is left over for scalar instructions.
inline int64_t whole_vectors(int64_t count, int64_t total) { return std::min((count + 31) / 32 * 32, total); }

constexpr bfloat16 kLowest = 0xFF7F;

// Dropout without stored masks: what is kept is a function of seed and index. `dropped` is a share of 2^32.
inline float kept(uint32_t index, uint32_t seed, uint32_t dropped) {
  uint32_t mixed = (index ^ seed) * 0x9E3779B1u;
  mixed = (mixed ^ (mixed >> 15)) * 0x85EBCA77u;
  mixed ^= mixed >> 13;
  return mixed >= dropped ? 1.0f : 0.0f;
}

inline float sigmoid(float x) { return 1 / (1 + exponential(-x)); }

}  // namespace

extern "C" {

// normed = x / rms(x) * weight; inverse [rows] is 1 / rms(x).
void rms_norm(
    const bfloat16* x, const float* weight, bfloat16* normed, float* inverse, int64_t rows, int64_t width, float eps) {
  for (int64_t row = 0; row < rows; ++row, x += width, normed += width) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += widen(x[i]) * widen(x[i]);
    const float scale = inverse[row] = 1 / std::sqrt(sum / width + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) normed[i] = narrow(widen(x[i]) * scale * weight[i]);
  }
}

// Adds the gradient of x to `x_gradient`, and that of the weight to `weight_gradient` [width].
void rms_norm_backward(
    const bfloat16* gradient, const bfloat16* x, const float* weight, const float* inverse, bfloat16* x_gradient,
    float* weight_gradient, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; ++row, gradient += width, x += width, x_gradient += width) {
    const float scale = inverse[row];
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) {
      const float product = widen(gradient[i]) * widen(x[i]) * scale;
      weight_gradient[i] += product;
      sum += product * weight[i];
    }
    const float mean = sum / width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const float change = scale * (widen(gradient[i]) * weight[i] - widen(x[i]) * scale * mean);
      x_gradient[i] = narrow(widen(x_gradient[i]) + change);
    }
  }
}

// Sets a share of the numbers to 0, and multiplies the others by `scale`, in place.
void drop_out(bfloat16* x, int64_t count, int64_t seed, int64_t dropped, float scale) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) x[i] = narrow(widen(x[i]) * scale * kept(i, seed, dropped));
}

// gates [rows, 2 * width] -> silu(left half) * right half [rows, width].
void silu_mul(const bfloat16* gates, bfloat16* product, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; ++row, gates += 2 * width, product += width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const float gate = widen(gates[i]);
      product[i] = narrow(gate * sigmoid(gate) * widen(gates[width + i]));
    }
  }
}

// Replaces the gates by their gradient.
void silu_mul_backward(const bfloat16* gradient, bfloat16* gates, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; ++row, gates += 2 * width, gradient += width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const float gate = widen(gates[i]), up = widen(gates[width + i]), above = widen(gradient[i]);
      const float share = sigmoid(gate);
      gates[i] = narrow(above * up * share * (1 + gate * (1 - share)));
      gates[width + i] = narrow(above * gate * share);
    }
  }
}

// Softmax over the first `seen` keys of each query, in place; keys behind them get 0.
// scores [sequences, heads, queries, keys], seen [sequences, queries].
void masked_softmax(
    bfloat16* scores, const int32_t* seen, int64_t sequences, int64_t heads, int64_t queries, int64_t keys,
    float scale) {
  std::vector<float> powers(keys);
  for (int64_t sequence = 0; sequence < sequences; ++sequence, seen += queries) {
    for (int64_t row = 0; row < heads * queries; ++row, scores += keys) {
      const int64_t count = seen[row % queries];
      const int64_t whole = whole_vectors(count, keys);
      std::fill(scores + count, scores + whole, kLowest);
      float highest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : highest)
      for (int64_t key = 0; key < whole; ++key) highest = std::max(highest, widen(scores[key]));
#pragma omp simd reduction(+ : sum)
      for (int64_t key = 0; key < whole; ++key) {
        powers[key] = exponential((widen(scores[key]) - highest) * scale);
        sum += powers[key];
      }
      const float factor = 1 / sum;
#pragma omp simd
      for (int64_t key = 0; key < whole; ++key) scores[key] = narrow(powers[key] * factor);
      std::fill(scores + count, scores + keys, bfloat16{0});
    }
  }
}

// Replaces the gradient of the weights by that of the scores. Weights behind the first `seen` are 0.
void masked_softmax_backward(
    const bfloat16* weights, bfloat16* gradient, const int32_t* seen, int64_t sequences, int64_t heads, int64_t queries,
    int64_t keys, float scale) {
  for (int64_t sequence = 0; sequence < sequences; ++sequence, seen += queries) {
    for (int64_t row = 0; row < heads * queries; ++row, weights += keys, gradient += keys) {
      const int64_t whole = whole_vectors(seen[row % queries], keys);
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t key = 0; key < whole; ++key) sum += widen(weights[key]) * widen(gradient[key]);
#pragma omp simd
      for (int64_t key = 0; key < whole; ++key)
        gradient[key] = narrow(widen(weights[key]) * (widen(gradient[key]) - sum) * scale);
      std::fill(gradient + whole, gradient + keys, bfloat16{0});
    }
  }
}

// Columns of rows to heads [sequences, heads, length, width]: position t of sequence s is row table[s, t], zeros where
// that is -1. With `turns` [positions, width] (cosines, then sines), rotated to position starts[s] + t.
void gather_heads(
    const bfloat16* rows, int64_t stride, const int32_t* table, const int32_t* starts, const float* turns,
    int64_t sequences, int64_t heads, int64_t length, int64_t width, bfloat16* gathered) {
  const int64_t half = width / 2;
  for (int64_t sequence = 0; sequence < sequences; ++sequence, table += length, gathered += heads * length * width) {
    for (int64_t t = 0; t < length; ++t) {
      const float* cosines = turns == nullptr ? nullptr : turns + (starts[sequence] + t) * width;
      for (int64_t head = 0; head < heads; ++head) {
        bfloat16* to = gathered + (head * length + t) * width;
        const bfloat16* from = rows + table[t] * stride + head * width;
        if (table[t] < 0) {
          std::fill_n(to, width, bfloat16{0});
        } else if (turns == nullptr) {
          std::copy_n(from, width, to);
        } else {
#pragma omp simd
          for (int64_t i = 0; i < half; ++i) {
            const float first = widen(from[i]), second = widen(from[half + i]);
            const float cosine = cosines[i], sine = cosines[half + i];
            to[i] = narrow(first * cosine - second * sine);
            to[half + i] = narrow(second * cosine + first * sine);
          }
        }
      }
    }
  }
}

// The reverse, rotated back.
void scatter_heads(
    const bfloat16* gathered, int64_t stride, const int32_t* table, const int32_t* starts, const float* turns,
    int64_t sequences, int64_t heads, int64_t length, int64_t width, bfloat16* rows) {
  const int64_t half = width / 2;
  for (int64_t sequence = 0; sequence < sequences; ++sequence, table += length, gathered += heads * length * width) {
    for (int64_t t = 0; t < length; ++t) {
      if (table[t] < 0) continue;
      const float* cosines = turns == nullptr ? nullptr : turns + (starts[sequence] + t) * width;
      for (int64_t head = 0; head < heads; ++head) {
        const bfloat16* from = gathered + (head * length + t) * width;
        bfloat16* to = rows + table[t] * stride + head * width;
        if (turns == nullptr) {
          std::copy_n(from, width, to);
          continue;
        }
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
          const float first = widen(from[i]), second = widen(from[half + i]);
          const float cosine = cosines[i], sine = cosines[half + i];
          to[i] = narrow(first * cosine + second * sine);
          to[half + i] = narrow(second * cosine - first * sine);
        }
      }
    }
  }
}

// logits [rows, books, codes] become the gradient of the sum of cross-entropies; `losses` [books] are the sums over
// rows. Where a target [rows, books] is negative, nothing is counted.
void cross_entropy(
    bfloat16* logits, const int64_t* targets, double* losses, int64_t rows, int64_t books, int64_t codes) {
  std::vector<float> powers(codes);
  for (int64_t index = 0; index < rows * books; ++index, logits += codes) {
    const int64_t target = targets[index];
    if (target < 0) {
      std::fill_n(logits, codes, bfloat16{0});
      continue;
    }
    float highest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : highest)
    for (int64_t code = 0; code < codes; ++code) highest = std::max(highest, widen(logits[code]));
#pragma omp simd reduction(+ : sum)
    for (int64_t code = 0; code < codes; ++code) {
      powers[code] = exponential(widen(logits[code]) - highest);
      sum += powers[code];
    }
    losses[index % books] += std::log(sum) + highest - widen(logits[target]);
    const float factor = 1 / sum;
    powers[target] -= sum;
#pragma omp simd
    for (int64_t code = 0; code < codes; ++code) logits[code] = narrow(powers[code] * factor);
  }
}

}  // extern "C"
