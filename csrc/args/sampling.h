// The checked arguments of the samplers.
#pragma once

#include <cfloat>
#include <utility>

#include "args/checks.h"
#include "common/delay_state.h"
#include "common/draw.h"

namespace higgs_native {

struct Sampling {
  float temperature;
  int32_t top_k;
  float top_p;

  HIGGS_HOST_DEVICE bool has_temperature() const { return temperature >= 0 && temperature <= FLT_MAX; }
  HIGGS_HOST_DEVICE bool has_top_p() const { return top_p > 0; }
};

// RAS redraws a code from the softmax of the raw logits.
HIGGS_HOST_DEVICE Sampling repetition_sampling() { return {1, 0, 1}; }

// Sampling parameters per slot, or per row.
struct SamplingTable {
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;

  HIGGS_HOST_DEVICE Sampling operator[](int64_t i) const { return {temperature[i], top_k[i], top_p[i]}; }
};

// Arguments after shape and dtype checks; value checks are the backend's.
struct SampleAudioFrame {
  int32_t* codes;       // [num_rows, num_codebooks]
  int32_t* active;      // [num_rows]
  int32_t* positions;   // [num_rows]
  int32_t* state;       // [num_slots, kStateFields]
  int32_t* history;     // [num_slots, ring_length, num_codebooks]
  const float* logits;  // [num_rows, num_codebooks, vocabulary]
  const int32_t* slots;
  SamplingTable sampling;
  const int32_t* ras_win_len;
  const int32_t* ras_win_max_num_repeat;
  const int64_t* seed;
  int64_t num_rows, vocabulary, num_slots;
  int32_t ring_length, num_codebooks, bos_id, eos_id;

  HIGGS_HOST_DEVICE Slot slot(int64_t i) const {
    return {state + i * kStateFields,
            history + i * ring_length * num_codebooks,
            ring_length,
            num_codebooks,
            bos_id,
            eos_id};
  }

  // Completes a row's frame, once all its codes are drawn or forced, and advances its slot.
  HIGGS_HOST_DEVICE void finish_row(int64_t row, const Slot& of_row, int32_t* codes_of_row) const {
    // The last frame has a position too: a step that is in flight after it must not write an earlier one again.
    positions[row] += of_row.state[kActive];
    if (of_row.state[kActive]) of_row.finish_frame(codes_of_row);
    active[row] = of_row.state[kActive];
  }
};

struct SampleText {
  int32_t* tokens;      // [num_rows]
  const float* logits;  // [num_rows, vocabulary]
  const int32_t* slots;
  const int32_t* steps;
  SamplingTable sampling;
  const int64_t* seed;
  int64_t num_rows, vocabulary, num_slots;
};

struct ProcessLogits {
  float* out;           // [num_rows, vocabulary]; may be `logits`
  const float* logits;  // [num_rows, vocabulary]
  SamplingTable sampling;
  int64_t num_rows, vocabulary;
};

inline void check_vocabulary(const char* op, int64_t vocabulary) {
  HIGGS_CHECK(
      vocabulary >= 1 && vocabulary <= kMaxVocabulary, op, ": logits must have 1 to ", kMaxVocabulary, " columns, got ",
      vocabulary);
}

inline SamplingTable check_sampling_table(
    const char* op, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p, int64_t size) {
  check_tensor(op, "temperature", temperature, ScalarType::Float, {size});
  check_tensor(op, "top_k", top_k, ScalarType::Int, {size});
  check_tensor(op, "top_p", top_p, ScalarType::Float, {size});
  return {temperature.const_data_ptr<float>(), top_k.const_data_ptr<int32_t>(), top_p.const_data_ptr<float>()};
}

inline SampleAudioFrame check_sample_audio_frame(
    const Tensor& codes, const Tensor& active, const Tensor& positions, const Tensor& state, const Tensor& history,
    const Tensor& logits, const Tensor& slots, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
    const Tensor& ras_win_len, const Tensor& ras_win_max_num_repeat, const Tensor& seed, int64_t bos_id,
    int64_t eos_id) {
  const char* op = "sample_audio_frame";
  check_devices(
      op, {{"codes", codes},
           {"active", active},
           {"positions", positions},
           {"state", state},
           {"history", history},
           {"logits", logits},
           {"slots", slots},
           {"temperature", temperature},
           {"top_k", top_k},
           {"top_p", top_p},
           {"ras_win_len", ras_win_len},
           {"ras_win_max_num_repeat", ras_win_max_num_repeat},
           {"seed", seed}});
  check_tensor(op, "logits", logits, ScalarType::Float, {kAnySize, kAnySize, kAnySize});
  const int64_t num_rows = logits.size(0), num_codebooks = logits.size(1), vocabulary = logits.size(2);
  HIGGS_CHECK(num_codebooks >= 1, op, ": logits must have at least one codebook, got ", shape_text(logits));
  check_vocabulary(op, vocabulary);
  check_tensor(op, "codes", codes, ScalarType::Int, {num_rows, num_codebooks});
  check_tensor(op, "active", active, ScalarType::Int, {num_rows});
  check_tensor(op, "positions", positions, ScalarType::Int, {num_rows});
  check_tensor(op, "slots", slots, ScalarType::Int, {num_rows});
  check_tensor(op, "state", state, ScalarType::Int, {kAnySize, kStateFields});
  const int64_t num_slots = state.size(0);
  check_tensor(op, "history", history, ScalarType::Int, {num_slots, kAnySize, num_codebooks});
  const int64_t ring_length = history.size(1);
  HIGGS_CHECK(ring_length >= 1, op, ": history must hold at least one frame, got ", shape_text(history));
  const SamplingTable sampling = check_sampling_table(op, temperature, top_k, top_p, num_slots);
  check_tensor(op, "ras_win_len", ras_win_len, ScalarType::Int, {num_slots});
  check_tensor(op, "ras_win_max_num_repeat", ras_win_max_num_repeat, ScalarType::Int, {num_slots});
  check_tensor(op, "seed", seed, ScalarType::Long, {num_slots});
  for (auto [name, id] : {std::pair{"bos_id", bos_id}, std::pair{"eos_id", eos_id}}) {
    HIGGS_CHECK(id >= 0 && id < vocabulary, op, ": ", name, " must be 0 to ", vocabulary - 1, ", got ", id);
  }
  HIGGS_CHECK(bos_id != eos_id, op, ": eos_id must differ from bos_id, got ", eos_id, " for both");
  return {
      codes.mutable_data_ptr<int32_t>(),
      active.mutable_data_ptr<int32_t>(),
      positions.mutable_data_ptr<int32_t>(),
      state.mutable_data_ptr<int32_t>(),
      history.mutable_data_ptr<int32_t>(),
      logits.const_data_ptr<float>(),
      slots.const_data_ptr<int32_t>(),
      sampling,
      ras_win_len.const_data_ptr<int32_t>(),
      ras_win_max_num_repeat.const_data_ptr<int32_t>(),
      seed.const_data_ptr<int64_t>(),
      num_rows,
      vocabulary,
      num_slots,
      static_cast<int32_t>(ring_length),
      static_cast<int32_t>(num_codebooks),
      static_cast<int32_t>(bos_id),
      static_cast<int32_t>(eos_id)};
}

inline SampleText check_sample_text(
    const Tensor& tokens, const Tensor& logits, const Tensor& slots, const Tensor& steps, const Tensor& temperature,
    const Tensor& top_k, const Tensor& top_p, const Tensor& seed) {
  const char* op = "sample_text";
  check_devices(
      op, {{"tokens", tokens},
           {"logits", logits},
           {"slots", slots},
           {"steps", steps},
           {"temperature", temperature},
           {"top_k", top_k},
           {"top_p", top_p},
           {"seed", seed}});
  check_tensor(op, "logits", logits, ScalarType::Float, {kAnySize, kAnySize});
  const int64_t num_rows = logits.size(0), vocabulary = logits.size(1);
  check_vocabulary(op, vocabulary);
  check_tensor(op, "tokens", tokens, ScalarType::Int, {num_rows});
  check_tensor(op, "slots", slots, ScalarType::Int, {num_rows});
  check_tensor(op, "steps", steps, ScalarType::Int, {num_rows});
  check_tensor(op, "temperature", temperature, ScalarType::Float, {kAnySize});
  const int64_t num_slots = temperature.size(0);
  const SamplingTable sampling = check_sampling_table(op, temperature, top_k, top_p, num_slots);
  check_tensor(op, "seed", seed, ScalarType::Long, {num_slots});
  return {
      tokens.mutable_data_ptr<int32_t>(),
      logits.const_data_ptr<float>(),
      slots.const_data_ptr<int32_t>(),
      steps.const_data_ptr<int32_t>(),
      sampling,
      seed.const_data_ptr<int64_t>(),
      num_rows,
      vocabulary,
      num_slots};
}

inline ProcessLogits check_process_logits(
    const Tensor& out, const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p) {
  const char* op = "process_logits";
  check_devices(
      op, {{"out", out}, {"logits", logits}, {"temperature", temperature}, {"top_k", top_k}, {"top_p", top_p}});
  check_tensor(op, "logits", logits, ScalarType::Float, {kAnySize, kAnySize});
  const int64_t num_rows = logits.size(0), vocabulary = logits.size(1);
  check_vocabulary(op, vocabulary);
  check_tensor(op, "out", out, ScalarType::Float, {num_rows, vocabulary});
  const SamplingTable sampling = check_sampling_table(op, temperature, top_k, top_p, num_rows);
  return {out.mutable_data_ptr<float>(), logits.const_data_ptr<float>(), sampling, num_rows, vocabulary};
}

}  // namespace higgs_native
