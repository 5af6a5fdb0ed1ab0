// Random numbers and the weights of a draw.
//
// A draw is exact and independent of the order of its sums, so every backend draws the same code from the same logits.
// A token's weight is a 64-bit integer, made from its score by operations that round alike everywhere. Weights are
// summed as integers. The token drawn is the first one whose cumulative weight exceeds random * total / 2^64. Compile
// without contraction: each operation must round separately.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/host_device.h"
#include "common/philox.h"

namespace higgs_native {

// ---- Random numbers

inline constexpr uint32_t kMainDraw = 0, kRepetitionDraw = 1;  // a frame's draw, and the redraw of RAS
inline constexpr uint32_t kTextStream = 0xFFFFFFFFu;           // text has this in place of a codebook

// Depends only on (seed, step, codebook, draw), not on the batch or the slot.
HIGGS_HOST_DEVICE uint64_t random_bits(int64_t seed, int64_t step, uint32_t codebook, uint32_t draw) {
  auto counter = static_cast<uint64_t>(step);
  PhiloxWords words = philox4x32_10(
      {{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), codebook, draw}},
      static_cast<uint64_t>(seed));
  return static_cast<uint64_t>(words.word[1]) << 32 | words.word[0];
}

// random * total / 2^64, rounded down.
HIGGS_HOST_DEVICE uint64_t scale_random(uint64_t random, uint64_t total) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(random, total);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(random) * total >> 64);
#endif
}

// ---- Scores and weights

HIGGS_HOST_DEVICE float multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

HIGGS_HOST_DEVICE float add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

HIGGS_HOST_DEVICE float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

HIGGS_HOST_DEVICE uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

// An unsigned integer in the float's order; -0 and 0 are equal.
HIGGS_HOST_DEVICE uint32_t order_key(float x) {
  uint32_t bits = float_bits(add(x, 0.0f));
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

HIGGS_HOST_DEVICE float bits_to_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

HIGGS_HOST_DEVICE float key_to_float(uint32_t key) {
  return bits_to_float(key ^ (~static_cast<uint32_t>(static_cast<int32_t>(key) >> 31) | 0x80000000u));
}

inline constexpr uint32_t kMinusInfinityKey = 0x007FFFFFu;  // below it: negative NaNs
inline constexpr uint32_t kInfinityKey = 0xFF800000u;       // above it: positive NaNs

// Sums of the weights of this many tokens stay below 2^63.
inline constexpr int64_t kMaxVocabulary = 1 << 22;

// 2^40 * exp(x) for x <= 0, to a relative 3e-7 and an absolute 1; 0 below x = -28.4.
HIGGS_HOST_DEVICE uint64_t draw_weight(float x) {
  float y = multiply(x, 1.44269504f);
  // max(y, -63) without a branch, which would prevent vectorization.
  uint32_t in_range = 0u - static_cast<uint32_t>(y > -63.0f);
  y = bits_to_float((float_bits(y) & in_range) | (float_bits(-63.0f) & ~in_range));
  // 2^y = 2^whole * 2^f, f in (-1, 0]: a minimax polynomial with 2^0 = 1 exactly.
  int whole = static_cast<int>(y);
  float f = add(y, -static_cast<float>(whole));
  float p = 1.09023221e-4f;
  p = add(multiply(p, f), 1.27474824e-3f);
  p = add(multiply(p, f), 9.57918e-3f);
  p = add(multiply(p, f), 5.549076e-2f);
  p = add(multiply(p, f), 2.4022436e-1f);
  p = add(multiply(p, f), 6.9314706e-1f);
  p = add(multiply(p, f), 1.0f);
  // p is in [0.5, 1], so p * 2^24 is an integer. The shift gives 0 from y = -41 down.
  return static_cast<uint64_t>(static_cast<int32_t>(multiply(p, 16777216.0f))) << 16 >> -whole;
}

// Top-p keeps a token if the weight of all tokens above it is less than this; 1 or more, so the best is always kept.
HIGGS_HOST_DEVICE uint64_t top_p_limit(float top_p, uint64_t total) {
  double limit = ceil(static_cast<double>(top_p) * static_cast<double>(total));
  return limit < 1.0 ? 1 : static_cast<uint64_t>(limit);
}

}  // namespace higgs_native
