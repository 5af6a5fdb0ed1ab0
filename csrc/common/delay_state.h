// The delay-pattern state machine of the sampler: which codes are forced, which are drawn, and when a segment ends.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace higgs_native {

// The implementations open, close and end a segment in different ways.
enum Convention : int32_t {
  kBoson = 0,
  kTransformers = 1,
  kHiggsTts3 = 2,
};

HIGGS_HOST_DEVICE bool is_convention(int32_t value) { return value >= kBoson && value <= kHiggsTts3; }

// The int32 fields of a slot's row of `state`.
enum StateField : int32_t {
  kActive = 0,        // 0: the slot emits all-EOS frames and does not change
  kConvention = 1,    // Convention
  kFrame = 2,         // frames emitted in this request; counts the random numbers
  kHistoryCount = 3,  // frames of audio so far, prompt included; the ring `history` holds the last of them
  // Boson's convention, and that of Higgs TTS 3
  kOpened = 4,     // delays opened so far: codebooks above it are BOS
  kRemaining = 5,  // frames until the end, -1 before EOS; in Boson's also the codebooks that EOS has not reached yet
  // transformers' convention
  kBosBase = 4,  // codebook k is BOS while kBosBase + kBosStep * k >= 0
  kBosStep = 5,
  kEosBase = 6,  // codebook k is EOS where kEosBase + k <= 0
  kEnding = 7,   // 1: a code was EOS, and kEosBase counts down
  kStateFields = 8,
};

inline constexpr int32_t kDrawn = -1;

// The limit of a field's magnitude: the sums of fields, codebooks and frames below fit 32 bits.
inline constexpr int32_t kMaxField = 1 << 29;

// One slot of the sampler: its row of `state`, its ring of past frames, and the sizes and ids of all slots.
struct Slot {
  int32_t* state;    // [kStateFields]
  int32_t* history;  // [ring_length, num_codebooks]
  int32_t ring_length, num_codebooks, bos_id, eos_id;

  // The code that codebook k of the next frame must have, or kDrawn. `greedy`: temperature 0.
  HIGGS_HOST_DEVICE int32_t forced_code(int32_t k, bool greedy) const {
    if (!state[kActive]) return eos_id;
    if (state[kConvention] != kTransformers) {
      const bool closes = state[kConvention] == kBoson && state[kRemaining] >= 0;
      if (closes && k < num_codebooks - state[kRemaining]) return eos_id;
      return k > state[kOpened] ? bos_id : kDrawn;
    }
    bool bos = state[kBosBase] + state[kBosStep] * k >= 0;
    bool eos = state[kEosBase] - state[kEnding] + k <= 0;
    // If both hold, both masks leave no logit. transformers takes index 0 when greedy, and fails when it samples.
    if (bos && eos && greedy) return 0;
    return eos ? eos_id : bos ? bos_id : kDrawn;
  }

  // The frames before this one in which RAS looks for `code`, or -1 if it does not look at the code at all. transformers'
  // convention checks forced codes too and never counts BOS and EOS; the others check only drawn codes and count BOS and
  // EOS as any other.
  HIGGS_HOST_DEVICE int32_t frames_checked(int32_t code, bool forced, int32_t window) const {
    if (!state[kActive] || window <= 0 || state[kHistoryCount] == 0) return -1;
    bool transformers = state[kConvention] == kTransformers;
    if (forced && !transformers) return -1;
    if (transformers && (code == bos_id || code == eos_id)) return 0;
    return state[kHistoryCount] < window ? state[kHistoryCount] : window;
  }

  // Whether RAS replaces `code` of codebook k.
  HIGGS_HOST_DEVICE bool is_repetition(
      int32_t k, int32_t code, bool forced, int32_t window, int32_t max_num_repeat) const {
    int32_t frames = frames_checked(code, forced, window), repeats = 0;
    for (int32_t back = 1; back <= frames; ++back) repeats += *past_code(state[kHistoryCount] - back, k) == code;
    return frames >= 0 && repeats >= max_num_repeat;
  }

  HIGGS_HOST_DEVICE int32_t* past_code(int32_t frame, int32_t k) const {
    return history + static_cast<int64_t>(frame % ring_length) * num_codebooks + k;
  }

  // Completes an active slot's frame once every code is drawn or forced, appends it to the ring, advances the state.
  HIGGS_HOST_DEVICE void finish_frame(int32_t* codes) const {
    int32_t num_eos = 0, first_eos = num_codebooks;
    for (int32_t k = num_codebooks - 1; k >= 0; --k) {
      if (codes[k] != eos_id) continue;
      ++num_eos;
      first_eos = k;
    }
    if (state[kConvention] == kBoson) {
      finish_boson(codes, first_eos);
    } else if (state[kConvention] == kHiggsTts3) {
      finish_higgs_tts_3(codes[0] == eos_id);
    } else {
      --state[kBosBase];
      state[kEosBase] -= state[kEnding];
      if (num_eos > 0) state[kEnding] = 1;
      if (num_eos == num_codebooks) state[kActive] = 0;
    }
    int32_t* past = past_code(state[kHistoryCount], 0);
    for (int32_t k = 0; k < num_codebooks; ++k) past[k] = codes[k];
    ++state[kHistoryCount];
    ++state[kFrame];
  }

  // The lowest codebook at EOS closes those below it. Then EOS climbs one codebook per frame.
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

  // Only an EOS of codebook 0 ends the segment, and none does while delays open. The other codebooks draw on until
  // theirs would be reached.
  HIGGS_HOST_DEVICE void finish_higgs_tts_3(bool first_is_eos) const {
    if (state[kOpened] < num_codebooks) {
      ++state[kOpened];
      return;
    }
    if (state[kRemaining] > 0) --state[kRemaining];
    else if (first_is_eos) state[kRemaining] = num_codebooks > 2 ? num_codebooks - 2 : 0;
    if (state[kRemaining] == 0) state[kActive] = 0;
  }
};

}  // namespace higgs_native
