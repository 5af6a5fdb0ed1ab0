// Drawing codes and text tokens from logits, and advancing the delay-pattern state machine (common/sampling.h).
//
// A row of logits becomes 32-bit keys that order as the scores do. Top-k and top-p are thresholds on the keys, found by a
// radix search over weights (1 a token for top-k, the draw's weights for top-p): nothing is sorted. After top-k only the
// tokens that are left are weighed.
#include "common/sampling.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "common/checks.h"
#include "cpu/sampling_kernels.h"

namespace higgs_native::cpu {

namespace {

// Logits that a thread takes at a time: sharing out fewer costs more than drawing from them.
constexpr int64_t kGrain = 16 * 1024;

enum class RowError : int64_t { none, nan, infinite, empty };

const char* describe(RowError error) {
  switch (error) {
    case RowError::nan: return "hold a NaN";
    case RowError::infinite: return "hold +inf, or exceed float32 when divided by the temperature";
    case RowError::empty: return "are all -inf";
    default: return "are fine";
  }
}

struct Sampling {
  float temperature;
  int32_t top_k;
  float top_p;
};

// The largest key t for which the keys >= t together weigh `limit` or more; all keys must.
template <typename Weight>
uint32_t find_threshold(const uint32_t* keys, int64_t n, uint64_t limit, Weight weight) {
  constexpr int kBits = 11;
  uint64_t bins[1 << kBits];
  uint32_t prefix = 0, prefix_mask = 0;
  uint64_t above = 0;
  for (int shift : {21, 10, 0}) {
    uint32_t bin_mask = shift > 0 ? (1u << kBits) - 1 : (1u << 10) - 1;
    std::fill_n(bins, bin_mask + 1, 0);
    for (int64_t i = 0; i < n; ++i) {
      if ((keys[i] & prefix_mask) == prefix) bins[keys[i] >> shift & bin_mask] += weight(i);
    }
    uint32_t bin = bin_mask;
    while (above + bins[bin] < limit) above += bins[bin--];
    prefix |= bin << shift;
    prefix_mask |= bin_mask << shift;
  }
  return prefix;
}

// The tokens of one row that can still be drawn. One object a thread serves all its rows.
class Candidates {
 public:
  // Takes all tokens, with their logits divided by the temperature (0: as they are).
  RowError load(const float* logits, int64_t n, float temperature) {
    index_.clear();
    keys_.resize(n);
    size_ = n;
    if (temperature == 0) temperature = 1;
    KeyRange range = sampling_kernels().make_keys(keys_.data(), logits, n, temperature);
    highest_ = range.highest;
    if (range.lowest < kMinusInfinityKey || highest_ > kInfinityKey) return RowError::nan;
    if (highest_ == kInfinityKey) return RowError::infinite;
    return highest_ == kMinusInfinityKey ? RowError::empty : RowError::none;
  }

  // The first of the highest scores; for all tokens, before any are dropped.
  int32_t best() const { return static_cast<int32_t>(std::find(keys_.begin(), keys_.end(), highest_) - keys_.begin()); }

  // Drops what top-k, then top-p takes away. Returns the lowest key that is kept.
  uint32_t keep(int32_t top_k, float top_p) {
    uint32_t threshold = 0;
    if (top_k > 0 && top_k < size_) {
      threshold = find_threshold(keys_.data(), size_, top_k, [](int64_t) { return uint64_t{1}; });
      drop_below(threshold);
    }
    weigh();
    if (top_p < 1) {
      uint64_t limit = top_p_limit(top_p, total_);
      threshold = find_threshold(keys_.data(), size_, limit, [this](int64_t i) { return weights_[i]; });
      total_ = 0;
      for (int64_t i = 0; i < size_; ++i) {
        if (keys_[i] < threshold) weights_[i] = 0;
        total_ += weights_[i];
      }
    }
    return threshold;
  }

  int32_t draw(uint64_t random) const {
    uint64_t target = scale_random(random, total_), cumulative = 0;
    int64_t i = 0;
    while ((cumulative += weights_[i]) <= target) ++i;
    return index_.empty() ? static_cast<int32_t>(i) : index_[i];
  }

 private:
  void drop_below(uint32_t threshold) {
    index_.resize(size_);
    int64_t kept = 0;
    for (int64_t i = 0; i < size_; ++i) {  // a branch here would be mispredicted
      uint32_t key = keys_[i];
      index_[kept] = static_cast<int32_t>(i);
      keys_[kept] = key;
      kept += key >= threshold;
    }
    size_ = kept;
  }

  void weigh() {
    weights_.resize(size_);
    total_ = sampling_kernels().weigh(weights_.data(), keys_.data(), size_, key_to_float(highest_));
  }

  int64_t size_ = 0;
  uint32_t highest_ = 0;
  uint64_t total_ = 0;
  std::vector<uint32_t> keys_;
  std::vector<int32_t> index_;  // of each candidate in the row; empty while all are left
  std::vector<uint64_t> weights_;
};

Candidates& thread_candidates() {
  static thread_local Candidates candidates;
  return candidates;
}

RowError draw_token(const float* logits, int64_t n, const Sampling& sampling, uint64_t random, int32_t* token) {
  Candidates& candidates = thread_candidates();
  RowError error = candidates.load(logits, n, sampling.temperature);
  if (error != RowError::none) return error;
  if (sampling.temperature == 0) {
    *token = candidates.best();
  } else {
    candidates.keep(sampling.top_k, sampling.top_p);
    *token = candidates.draw(random);
  }
  return RowError::none;
}

// Runs `row(i)` for rows 0 .. n - 1 on torch's threads; afterwards `first_bad()` is the lowest that failed.
class RowLoop {
 public:
  template <typename Row>
  void run(int64_t n, int64_t vocabulary, const Row& row) {
    int64_t grain = std::max<int64_t>(1, kGrain / vocabulary);
    torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        RowError error = row(i);
        if (error == RowError::none) continue;
        int64_t found = i * kErrors + static_cast<int64_t>(error), lowest = lowest_.load();
        while (found < lowest && !lowest_.compare_exchange_weak(lowest, found)) {
        }
        return;
      }
    });
  }

  bool failed() const { return lowest_.load() != kNone; }
  int64_t first_bad() const { return lowest_.load() / kErrors; }
  RowError error() const { return static_cast<RowError>(lowest_.load() % kErrors); }

 private:
  static constexpr int64_t kErrors = 4, kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> lowest_{kNone};
};

void check_vocabulary(const char* op, int64_t vocabulary) {
  STD_TORCH_CHECK(
      vocabulary >= 1 && vocabulary <= kMaxVocabulary, op, ": logits must have 1 to ", kMaxVocabulary, " columns, got ",
      vocabulary);
}

void check_sampling(const char* op, const char* of, int64_t i, const Sampling& sampling) {
  STD_TORCH_CHECK(
      sampling.temperature >= 0 && sampling.temperature <= std::numeric_limits<float>::max(), op, ": temperature of ",
      of, " ", i, " must be finite and 0 or more, got ", sampling.temperature);
  STD_TORCH_CHECK(sampling.top_p > 0, op, ": top_p of ", of, " ", i, " must be greater than 0, got ", sampling.top_p);
}

void check_slot_index(const char* op, int64_t row, int32_t slot, int64_t num_slots) {
  STD_TORCH_CHECK(slot >= 0 && slot < num_slots, op, ": slots[", row, "] must be 0 to ", num_slots - 1, ", got ", slot);
}

void sample_audio_frame_cpu(
    const Tensor& codes, const Tensor& state, const Tensor& history, const Tensor& logits, const Tensor& slots,
    const Tensor& temperature, const Tensor& top_k, const Tensor& top_p, const Tensor& ras_win_len,
    const Tensor& ras_win_max_num_repeat, const Tensor& seed, int64_t bos_id, int64_t eos_id) {
  const char* op = "sample_audio_frame";
  check_tensor(op, "logits", logits, ScalarType::Float, {kAnySize, kAnySize, kAnySize});
  int64_t num_rows = logits.size(0), num_codebooks = logits.size(1), vocabulary = logits.size(2);
  STD_TORCH_CHECK(num_codebooks >= 1, op, ": logits must have 1 codebook or more, got shape ", shape_text(logits));
  check_vocabulary(op, vocabulary);
  check_tensor(op, "codes", codes, ScalarType::Int, {num_rows, num_codebooks});
  check_tensor(op, "slots", slots, ScalarType::Int, {num_rows});
  check_tensor(op, "state", state, ScalarType::Int, {kAnySize, kStateFields});
  int64_t num_slots = state.size(0);
  check_tensor(op, "history", history, ScalarType::Int, {num_slots, kAnySize, num_codebooks});
  int64_t ring_length = history.size(1);
  STD_TORCH_CHECK(ring_length >= 1, op, ": history must hold 1 frame or more, got shape ", shape_text(history));
  check_tensor(op, "temperature", temperature, ScalarType::Float, {num_slots});
  check_tensor(op, "top_k", top_k, ScalarType::Int, {num_slots});
  check_tensor(op, "top_p", top_p, ScalarType::Float, {num_slots});
  check_tensor(op, "ras_win_len", ras_win_len, ScalarType::Int, {num_slots});
  check_tensor(op, "ras_win_max_num_repeat", ras_win_max_num_repeat, ScalarType::Int, {num_slots});
  check_tensor(op, "seed", seed, ScalarType::Long, {num_slots});
  for (auto [name, id] : {std::pair{"bos_id", bos_id}, std::pair{"eos_id", eos_id}}) {
    STD_TORCH_CHECK(id >= 0 && id < vocabulary, op, ": ", name, " must be 0 to ", vocabulary - 1, ", got ", id);
  }
  STD_TORCH_CHECK(bos_id != eos_id, op, ": bos_id and eos_id must differ, both are ", bos_id);

  auto slot_of = [&](int64_t row) {
    int32_t i = slots.const_data_ptr<int32_t>()[row];
    return Slot{
        state.mutable_data_ptr<int32_t>() + i * kStateFields,
        history.mutable_data_ptr<int32_t>() + i * ring_length * num_codebooks,
        static_cast<int32_t>(ring_length),
        static_cast<int32_t>(num_codebooks),
        static_cast<int32_t>(bos_id),
        static_cast<int32_t>(eos_id)};
  };
  auto sampling_of = [&](int32_t i) {
    return Sampling{
        temperature.const_data_ptr<float>()[i], top_k.const_data_ptr<int32_t>()[i], top_p.const_data_ptr<float>()[i]};
  };

  std::vector<bool> taken(num_slots);
  for (int64_t row = 0; row < num_rows; ++row) {
    int32_t i = slots.const_data_ptr<int32_t>()[row];
    check_slot_index(op, row, i, num_slots);
    STD_TORCH_CHECK(!taken[i], op, ": slots must name each slot once, got ", i, " twice");
    taken[i] = true;
    check_sampling(op, "slot", i, sampling_of(i));
    STD_TORCH_CHECK(
        ras_win_len.const_data_ptr<int32_t>()[i] <= ring_length, op, ": ras_win_len of slot ", i, " must be at most ",
        ring_length, ", the frames that history holds, got ", ras_win_len.const_data_ptr<int32_t>()[i]);
    const int32_t* fields = slot_of(row).state;
    STD_TORCH_CHECK(
        fields[kRule] == kBosonRule || fields[kRule] == kTransformersRule, op, ": state of slot ", i, " names rule ",
        fields[kRule], ", which is none");
    STD_TORCH_CHECK(
        fields[kHistoryCount] >= 0, op, ": state of slot ", i, " counts ", fields[kHistoryCount], " past frames");
  }

  // Draws first, and nothing is written if a row can't be drawn from.
  std::vector<int32_t> drawn(num_rows * num_codebooks);
  RowLoop loop;
  loop.run(num_rows * num_codebooks, vocabulary, [&](int64_t i) {
    int64_t row = i / num_codebooks;
    auto k = static_cast<int32_t>(i % num_codebooks);
    int32_t slot_index = slots.const_data_ptr<int32_t>()[row];
    Slot slot = slot_of(row);
    Sampling sampling = sampling_of(slot_index);
    const float* row_logits = logits.const_data_ptr<float>() + i * vocabulary;
    auto random = [&](uint32_t draw) {
      return random_bits(seed.const_data_ptr<int64_t>()[slot_index], slot.state[kFrame], k, draw);
    };
    drawn[i] = slot.forced_code(k, sampling.temperature == 0);
    bool forced = drawn[i] != kDrawn;
    if (!forced) {
      RowError error = draw_token(row_logits, vocabulary, sampling, random(kMainDraw), &drawn[i]);
      if (error != RowError::none) return error;
    }
    int32_t window = ras_win_len.const_data_ptr<int32_t>()[slot_index];
    if (!slot.is_repetition(
            k, drawn[i], forced, window, ras_win_max_num_repeat.const_data_ptr<int32_t>()[slot_index])) {
      return RowError::none;
    }
    return draw_token(row_logits, vocabulary, {1, 0, 1}, random(kRepetitionDraw), &drawn[i]);
  });
  STD_TORCH_CHECK(
      !loop.failed(), op, ": logits of slot ", slots.const_data_ptr<int32_t>()[loop.first_bad() / num_codebooks],
      ", codebook ", loop.first_bad() % num_codebooks, " ", describe(loop.error()));

  for (int64_t row = 0; row < num_rows; ++row) {
    Slot slot = slot_of(row);
    int32_t* row_codes = drawn.data() + row * num_codebooks;
    if (slot.state[kActive]) slot.finish_frame(row_codes);
    std::copy_n(row_codes, num_codebooks, codes.mutable_data_ptr<int32_t>() + row * num_codebooks);
  }
}

void sample_text_cpu(
    const Tensor& tokens, const Tensor& logits, const Tensor& slots, const Tensor& steps, const Tensor& temperature,
    const Tensor& top_k, const Tensor& top_p, const Tensor& seed) {
  const char* op = "sample_text";
  check_tensor(op, "logits", logits, ScalarType::Float, {kAnySize, kAnySize});
  int64_t num_rows = logits.size(0), vocabulary = logits.size(1);
  check_vocabulary(op, vocabulary);
  check_tensor(op, "tokens", tokens, ScalarType::Int, {num_rows});
  check_tensor(op, "slots", slots, ScalarType::Int, {num_rows});
  check_tensor(op, "steps", steps, ScalarType::Int, {num_rows});
  check_tensor(op, "temperature", temperature, ScalarType::Float, {kAnySize});
  int64_t num_slots = temperature.size(0);
  check_tensor(op, "top_k", top_k, ScalarType::Int, {num_slots});
  check_tensor(op, "top_p", top_p, ScalarType::Float, {num_slots});
  check_tensor(op, "seed", seed, ScalarType::Long, {num_slots});
  auto sampling_of = [&](int32_t i) {
    return Sampling{
        temperature.const_data_ptr<float>()[i], top_k.const_data_ptr<int32_t>()[i], top_p.const_data_ptr<float>()[i]};
  };
  for (int64_t row = 0; row < num_rows; ++row) {
    int32_t i = slots.const_data_ptr<int32_t>()[row];
    check_slot_index(op, row, i, num_slots);
    check_sampling(op, "slot", i, sampling_of(i));
  }

  std::vector<int32_t> drawn(num_rows);
  RowLoop loop;
  loop.run(num_rows, vocabulary, [&](int64_t row) {
    int32_t i = slots.const_data_ptr<int32_t>()[row];
    uint64_t random =
        random_bits(seed.const_data_ptr<int64_t>()[i], steps.const_data_ptr<int32_t>()[row], kTextStream, kMainDraw);
    return draw_token(
        logits.const_data_ptr<float>() + row * vocabulary, vocabulary, sampling_of(i), random, &drawn[row]);
  });
  STD_TORCH_CHECK(
      !loop.failed(), op, ": logits of row ", loop.first_bad(), " (slot ",
      slots.const_data_ptr<int32_t>()[loop.first_bad()], ") ", describe(loop.error()));
  std::copy(drawn.begin(), drawn.end(), tokens.mutable_data_ptr<int32_t>());
}

void process_logits_cpu(
    const Tensor& out, const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p) {
  const char* op = "process_logits";
  check_tensor(op, "logits", logits, ScalarType::Float, {kAnySize, kAnySize});
  int64_t num_rows = logits.size(0), vocabulary = logits.size(1);
  check_vocabulary(op, vocabulary);
  check_tensor(op, "out", out, ScalarType::Float, {num_rows, vocabulary});
  check_tensor(op, "temperature", temperature, ScalarType::Float, {num_rows});
  check_tensor(op, "top_k", top_k, ScalarType::Int, {num_rows});
  check_tensor(op, "top_p", top_p, ScalarType::Float, {num_rows});
  auto sampling_of = [&](int64_t row) {
    return Sampling{
        temperature.const_data_ptr<float>()[row], top_k.const_data_ptr<int32_t>()[row],
        top_p.const_data_ptr<float>()[row]};
  };
  for (int64_t row = 0; row < num_rows; ++row) {
    check_sampling(op, "row", row, sampling_of(row));
    STD_TORCH_CHECK(
        sampling_of(row).temperature > 0, op, ": temperature of row ", row, " must be greater than 0, got 0");
  }

  RowLoop loop;
  loop.run(num_rows, vocabulary, [&](int64_t row) {
    const float* from = logits.const_data_ptr<float>() + row * vocabulary;
    float* to = out.mutable_data_ptr<float>() + row * vocabulary;
    Sampling sampling = sampling_of(row);
    Candidates& candidates = thread_candidates();
    RowError error = candidates.load(from, vocabulary, sampling.temperature);
    if (error != RowError::none) return error;
    uint32_t threshold = candidates.keep(sampling.top_k, sampling.top_p);
    for (int64_t i = 0; i < vocabulary; ++i) {
      float score = divide(from[i], sampling.temperature);
      to[i] = order_key(score) >= threshold ? score : -std::numeric_limits<float>::infinity();
    }
    return RowError::none;
  });
  STD_TORCH_CHECK(!loop.failed(), op, ": logits of row ", loop.first_bad(), " ", describe(loop.error()));
}

}  // namespace

}  // namespace higgs_native::cpu

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) {
  m.impl("sample_audio_frame", TORCH_BOX(&higgs_native::cpu::sample_audio_frame_cpu));
  m.impl("sample_text", TORCH_BOX(&higgs_native::cpu::sample_text_cpu));
  m.impl("process_logits", TORCH_BOX(&higgs_native::cpu::process_logits_cpu));
}
