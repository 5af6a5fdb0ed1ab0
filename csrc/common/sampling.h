// What both backends share of sampling: the random numbers, the weights of a draw, and the delay-pattern state machine.
//
// A draw is exact and does not depend on the order of its sums, so every backend draws the same code from the same logits:
// a token's weight is a 64-bit integer, made from its score by operations that round alike everywhere; sums of weights are
// integer sums; and the token drawn is the first one whose cumulative weight exceeds random * total / 2^64.
// Everything here relies on single operations being rounded each for itself: compile it without contraction.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/host_device.h"
#include "common/philox.h"

namespace higgs_native {

// ---- random numbers ----

inline constexpr uint32_t kMainDraw = 0, kRepetitionDraw = 1;  // a frame's draw, and the redraw that RAS asks for
inline constexpr uint32_t kTextStream = 0xFFFFFFFFu;           // stands where audio has its codebook

// A function of these four alone: neither the batch nor a slot's place in it has a part.
HIGGS_HOST_DEVICE uint64_t random_bits(int64_t seed, int64_t step, uint32_t codebook, uint32_t draw) {
  auto counter = static_cast<uint64_t>(step);
  PhiloxWords words = philox4x32_10(
      {{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), codebook, draw}},
      static_cast<uint64_t>(seed));
  return static_cast<uint64_t>(words.word[1]) << 32 | words.word[0];
}

// The upper half of the product: `random` of 2^64 as a share of `total`.
HIGGS_HOST_DEVICE uint64_t scale_random(uint64_t random, uint64_t total) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(random, total);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(random) * total >> 64);
#endif
}

// ---- scores and weights ----

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

// An unsigned integer that orders as the float does; -0 and 0 are one.
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
  // max(y, -63) without a branch, which would keep the compiler from using vectors.
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
  // p is in [0.5, 1], so p * 2^24 is an integer. The shift leaves nothing from y = -41 on.
  return static_cast<uint64_t>(static_cast<int32_t>(multiply(p, 16777216.0f))) << 16 >> -whole;
}

// Top-p keeps a token if the weight of all tokens above it is less than this; 1 or more, so the best is always kept.
HIGGS_HOST_DEVICE uint64_t top_p_limit(float top_p, uint64_t total) {
  double limit = ceil(static_cast<double>(top_p) * static_cast<double>(total));
  return limit < 1.0 ? 1 : static_cast<uint64_t>(limit);
}

// ---- the delay-pattern state machine ----

enum Rule : int32_t {
  kBosonRule = 0,
  kTransformersRule = 1,
};

// The int32 fields of a slot's row of `state`.
enum StateField : int32_t {
  kActive = 0,        // 0: the slot emits all-EOS frames and does not change
  kRule = 1,          // Rule
  kFrame = 2,         // frames emitted in this request; counts the random numbers
  kHistoryCount = 3,  // frames of audio so far, prompt included; the ring `history` holds the last of them
  // Boson's rule
  kOpened = 4,     // delays opened so far: codebooks above it are BOS
  kRemaining = 5,  // codebooks that EOS has not reached yet; -1 before the first EOS
  // transformers' rule
  kBosBase = 4,  // codebook k is BOS while kBosBase + kBosStep * k >= 0
  kBosStep = 5,
  kEosBase = 6,  // codebook k is EOS where kEosBase + k <= 0
  kEnding = 7,   // 1: a code was EOS, and kEosBase counts down
  kStateFields = 8,
};

inline constexpr int32_t kDrawn = -1;

// One slot of the sampler: its row of `state`, its ring of past frames, and what all slots share.
struct Slot {
  int32_t* state;    // [kStateFields]
  int32_t* history;  // [ring_length, num_codebooks]
  int32_t ring_length, num_codebooks, bos_id, eos_id;

  // The code that codebook k of the next frame must have, or kDrawn. `greedy`: temperature 0.
  HIGGS_HOST_DEVICE int32_t forced_code(int32_t k, bool greedy) const {
    if (!state[kActive]) return eos_id;
    if (state[kRule] == kBosonRule) {
      if (state[kRemaining] >= 0 && k < num_codebooks - state[kRemaining]) return eos_id;
      return k > state[kOpened] ? bos_id : kDrawn;
    }
    bool bos = state[kBosBase] + state[kBosStep] * k >= 0;
    bool eos = state[kEosBase] - state[kEnding] + k <= 0;
    // Where both hold, both masks leave no logit: transformers takes index 0 when greedy, and fails when it samples.
    if (bos && eos && greedy) return 0;
    return eos ? eos_id : bos ? bos_id : kDrawn;
  }

  // Whether RAS replaces `code` of codebook k. Boson's rule looks only at codes that were drawn, and counts BOS and EOS as
  // any other; transformers' looks at forced ones too, and never counts BOS and EOS.
  HIGGS_HOST_DEVICE bool is_repetition(
      int32_t k, int32_t code, bool forced, int32_t window, int32_t max_num_repeat) const {
    if (!state[kActive] || window <= 0 || state[kHistoryCount] == 0) return false;
    bool boson = state[kRule] == kBosonRule;
    if (boson && forced) return false;
    bool counted = boson || (code != bos_id && code != eos_id);
    return (counted ? count_repeats(k, code, window) : 0) >= max_num_repeat;
  }

  // How often codebook k had `code` in the last `window` frames.
  HIGGS_HOST_DEVICE int32_t count_repeats(int32_t k, int32_t code, int32_t window) const {
    int32_t end = state[kHistoryCount], repeats = 0;
    for (int32_t frame = end > window ? end - window : 0; frame < end; ++frame) {
      repeats += *past_code(frame, k) == code;
    }
    return repeats;
  }

  HIGGS_HOST_DEVICE int32_t* past_code(int32_t frame, int32_t k) const {
    return history + static_cast<int64_t>(frame % ring_length) * num_codebooks + k;
  }

  // Completes an active slot's frame, once every code is drawn or forced, appends it to the ring and advances the state.
  HIGGS_HOST_DEVICE void finish_frame(int32_t* codes) const {
    int32_t num_eos = 0, first_eos = num_codebooks;
    for (int32_t k = num_codebooks - 1; k >= 0; --k) {
      if (codes[k] != eos_id) continue;
      ++num_eos;
      first_eos = k;
    }
    if (state[kRule] == kBosonRule) {
      finish_boson(codes, first_eos);
    } else {
      --state[kBosBase];
      state[kEosBase] -= state[kEnding];
      if (num_eos > 0) state[kEnding] = 1;
      if (num_eos == num_codebooks) state[kActive] = 0;
    }
    for (int32_t k = 0; k < num_codebooks; ++k) *past_code(state[kHistoryCount], k) = codes[k];
    ++state[kHistoryCount];
    ++state[kFrame];
  }

  // The lowest codebook that is EOS closes those below it; then EOS climbs by a codebook a frame.
  HIGGS_HOST_DEVICE void finish_boson(int32_t* codes, int32_t first_eos) const {
    if (state[kOpened] + 1 < num_codebooks) ++state[kOpened];
    bool ending = state[kRemaining] >= 0;
    if (ending) {
      --state[kRemaining];
    } else if (first_eos < num_codebooks) {
      for (int32_t k = 0; k < first_eos; ++k) codes[k] = eos_id;
      state[kRemaining] = num_codebooks - 1 - first_eos;
      ending = true;
    }
    if (ending && state[kRemaining] <= 0) {
      state[kActive] = 0;
      state[kOpened] = 0;
      state[kRemaining] = -1;
    }
  }
};

}  // namespace higgs_native
