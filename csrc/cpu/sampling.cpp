// Draws codes and text tokens from logits (common/draw.h) and advances the delay-pattern state machine
// (common/delay_state.h).
//
// A row of logits becomes 32-bit keys in the order of the scores. Top-k and top-p are thresholds on the keys, found by
// a radix search over weights (1 per token for top-k, the draw's weights for top-p): nothing is sorted. After top-k
// only the tokens that are left are weighed.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "args/sampling.h"
#include "cpu/parallel.h"
#include "cpu/sampling_kernels.h"

namespace higgs_native::cpu {

namespace {

// Drawing from a logit costs about as much as this many multiply-adds.
constexpr int64_t kDrawCost = 100;

enum class RowError : int64_t { none, nan, infinite, empty };

const char* describe(RowError error) {
  switch (error) {
    case RowError::nan: return "hold a NaN";
    case RowError::infinite: return "hold +inf, or exceed float32 when divided by the temperature";
    case RowError::empty: return "are all -inf";
    default: return "are fine";
  }
}

// The largest key t for which keys >= t together weigh at least `limit`, as all keys do.
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

// The tokens of one row that can still be drawn. A thread reuses one object for all its rows.
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

  // Drops tokens by top-k, then by top-p. Returns the lowest key that is kept.
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
    for (int64_t i = 0; i < size_; ++i) {  // a branch would be mispredicted
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
  std::vector<int32_t> index_;  // each candidate's token; empty while all are left
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

// Runs `row(i)` for rows 0 .. n - 1 on several threads. Then `first_bad()` is the lowest row that failed.
class RowLoop {
 public:
  template <typename Row>
  void run(int64_t n, int64_t vocabulary, const Row& row) {
    for_ranges(n, kDrawCost * vocabulary, [&](int64_t begin, int64_t end) {
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

void check_sampling(const char* op, const char* of, int64_t i, const Sampling& sampling) {
  HIGGS_CHECK(
      sampling.has_temperature(), op, ": temperature of ", of, " ", i, " must be finite and 0 or more, got ",
      sampling.temperature);
  HIGGS_CHECK(sampling.has_top_p(), op, ": top_p of ", of, " ", i, " must be greater than 0, got ", sampling.top_p);
}

void check_slot_index(const char* op, int64_t row, int32_t slot, int64_t num_slots) {
  HIGGS_CHECK(slot >= 0 && slot < num_slots, op, ": slots[", row, "] must be 0 to ", num_slots - 1, ", got ", slot);
}

void sample_audio_frame_cpu(
    const Tensor& codes, const Tensor& active, const Tensor& positions, const Tensor& state, const Tensor& history,
    const Tensor& logits, const Tensor& slots, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
    const Tensor& ras_win_len, const Tensor& ras_win_max_num_repeat, const Tensor& seed, int64_t bos_id,
    int64_t eos_id) {
  const char* op = "sample_audio_frame";
  const SampleAudioFrame args = check_sample_audio_frame(
      codes, active, positions, state, history, logits, slots, temperature, top_k, top_p, ras_win_len,
      ras_win_max_num_repeat, seed, bos_id, eos_id);
  std::vector<bool> taken(args.num_slots);
  for (int64_t row = 0; row < args.num_rows; ++row) {
    int32_t i = args.slots[row];
    check_slot_index(op, row, i, args.num_slots);
    HIGGS_CHECK(!taken[i], op, ": slots must name each slot once, got ", i, " twice");
    taken[i] = true;
    check_sampling(op, "slot", i, args.sampling[i]);
    HIGGS_CHECK(
        args.ras_win_len[i] <= args.ring_length, op, ": ras_win_len of slot ", i, " must be at most ", args.ring_length,
        ", the frames that history holds, got ", args.ras_win_len[i]);
    HIGGS_CHECK(
        args.positions[row] < INT32_MAX, op, ": positions[", row, "] must be below ", INT32_MAX, ", got ",
        args.positions[row]);
    const int32_t* fields = args.slot(i).state;
    for (int field = 0; field < kStateFields; ++field) {
      HIGGS_CHECK(
          fields[field] >= -kMaxField && fields[field] <= kMaxField, op, ": state[", i, ", ", field, "] must be ",
          -kMaxField, " to ", kMaxField, ", got ", fields[field]);
    }
    HIGGS_CHECK(
        is_convention(fields[kConvention]), op, ": convention of slot ", i, " in state must be 0, 1 or 2, got ",
        fields[kConvention]);
    HIGGS_CHECK(
        fields[kHistoryCount] >= 0, op, ": history count of slot ", i, " in state must be 0 or more, got ",
        fields[kHistoryCount]);
    HIGGS_CHECK(
        fields[kConvention] != kTransformers || fields[kBosStep] == 0 || fields[kBosStep] == 1, op,
        ": step of BOS of slot ", i, " in state must be 0 or 1, got ", fields[kBosStep]);
  }

  // All rows are drawn first: nothing is written if a row can't be drawn from.
  const int32_t num_codebooks = args.num_codebooks;
  std::vector<int32_t> drawn(args.num_rows * num_codebooks);
  RowLoop loop;
  loop.run(args.num_rows * num_codebooks, args.vocabulary, [&](int64_t i) {
    auto k = static_cast<int32_t>(i % num_codebooks);
    int32_t slot_index = args.slots[i / num_codebooks];
    Slot slot = args.slot(slot_index);
    Sampling sampling = args.sampling[slot_index];
    const float* row_logits = args.logits + i * args.vocabulary;
    auto random = [&](uint32_t draw) { return random_bits(args.seed[slot_index], slot.state[kFrame], k, draw); };
    drawn[i] = slot.forced_code(k, sampling.temperature == 0);
    bool forced = drawn[i] != kDrawn;
    if (!forced) {
      RowError error = draw_token(row_logits, args.vocabulary, sampling, random(kMainDraw), &drawn[i]);
      if (error != RowError::none) return error;
    }
    if (!slot.is_repetition(
            k, drawn[i], forced, args.ras_win_len[slot_index], args.ras_win_max_num_repeat[slot_index])) {
      return RowError::none;
    }
    return draw_token(row_logits, args.vocabulary, repetition_sampling(), random(kRepetitionDraw), &drawn[i]);
  });
  HIGGS_CHECK(
      !loop.failed(), op, ": logits of slot ", args.slots[loop.first_bad() / num_codebooks], ", codebook ",
      loop.first_bad() % num_codebooks, " ", describe(loop.error()));

  std::copy(drawn.begin(), drawn.end(), args.codes);
  for (int64_t row = 0; row < args.num_rows; ++row) {
    args.finish_row(row, args.slot(args.slots[row]), args.codes + row * num_codebooks);
  }
}

void sample_text_cpu(
    const Tensor& tokens, const Tensor& logits, const Tensor& slots, const Tensor& steps, const Tensor& temperature,
    const Tensor& top_k, const Tensor& top_p, const Tensor& seed) {
  const char* op = "sample_text";
  const SampleText args = check_sample_text(tokens, logits, slots, steps, temperature, top_k, top_p, seed);
  for (int64_t row = 0; row < args.num_rows; ++row) {
    int32_t i = args.slots[row];
    check_slot_index(op, row, i, args.num_slots);
    check_sampling(op, "slot", i, args.sampling[i]);
  }

  std::vector<int32_t> drawn(args.num_rows);
  RowLoop loop;
  loop.run(args.num_rows, args.vocabulary, [&](int64_t row) {
    int32_t i = args.slots[row];
    uint64_t random = random_bits(args.seed[i], args.steps[row], kTextStream, kMainDraw);
    return draw_token(args.logits + row * args.vocabulary, args.vocabulary, args.sampling[i], random, &drawn[row]);
  });
  HIGGS_CHECK(
      !loop.failed(), op, ": logits of row ", loop.first_bad(), " (slot ", args.slots[loop.first_bad()], ") ",
      describe(loop.error()));
  std::copy(drawn.begin(), drawn.end(), args.tokens);
}

void process_logits_cpu(
    const Tensor& out, const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p) {
  const char* op = "process_logits";
  const ProcessLogits args = check_process_logits(out, logits, temperature, top_k, top_p);
  for (int64_t row = 0; row < args.num_rows; ++row) {
    check_sampling(op, "row", row, args.sampling[row]);
    HIGGS_CHECK(args.sampling[row].temperature > 0, op, ": temperature of row ", row, " must be greater than 0, got 0");
  }

  RowLoop loop;
  loop.run(args.num_rows, args.vocabulary, [&](int64_t row) {
    const float* from = args.logits + row * args.vocabulary;
    float* to = args.out + row * args.vocabulary;
    Sampling sampling = args.sampling[row];
    Candidates& candidates = thread_candidates();
    RowError error = candidates.load(from, args.vocabulary, sampling.temperature);
    if (error != RowError::none) return error;
    uint32_t threshold = candidates.keep(sampling.top_k, sampling.top_p);
    for (int64_t i = 0; i < args.vocabulary; ++i) {
      float score = divide(from[i], sampling.temperature);
      to[i] = order_key(score) >= threshold ? score : -std::numeric_limits<float>::infinity();
    }
    return RowError::none;
  });
  HIGGS_CHECK(!loop.failed(), op, ": logits of row ", loop.first_bad(), " ", describe(loop.error()));
}

}  // namespace

}  // namespace higgs_native::cpu

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) {
  m.impl("sample_audio_frame", TORCH_BOX(&higgs_native::cpu::sample_audio_frame_cpu));
  m.impl("sample_text", TORCH_BOX(&higgs_native::cpu::sample_text_cpu));
  m.impl("process_logits", TORCH_BOX(&higgs_native::cpu::process_logits_cpu));
}
