// Draws codes and text tokens from logits (common/draw.h) and advances the delay-pattern state machine
// (common/delay_state.h).
//
// A row of logits becomes 32-bit keys in the order of the scores. Top-k and top-p are thresholds on the keys, found two
// bits per pass from the number, or the weight, of the keys at or above a candidate. All sums are integers, so that
// threads may add in any order and the draw equals the CPU's.
// Threads: a block draws from a row (for audio: a codebook of a row).
// Bytes: the logits once; the keys stay in shared memory. A row of more than kMaxSharedKeys is read in every pass, up
// to 36 times, from L2.
//
// The host does not read values, so none is refused. Where the CPU raises, because of logits, parameters or a slot, the
// code or token is -1 and processed logits are NaN. A slot keeps its state if it, not its logits, is wrong.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "args/sampling.h"
#include "cuda/launch.h"

namespace higgs_native::cuda {

namespace {

constexpr int kMaxThreads = 768;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr int64_t kLogitsOfThread = 8;
constexpr int64_t kMaxSharedKeys = 11 << 10;  // with the sums below the 48 KB that a block has by default

constexpr int32_t kNothingDrawn = -1;

// The warp's sum of up to 63 bits, from sums of 27 bits each.
__device__ __forceinline__ uint64_t warp_sum_exact(uint64_t x) {
  constexpr int kBits = 27;
  constexpr uint64_t kMask = (1u << kBits) - 1;
  uint64_t sum = 0;
#pragma unroll
  for (int shift = 0; shift < 64; shift += kBits) {
    sum += static_cast<uint64_t>(__reduce_add_sync(kAllLanes, static_cast<uint32_t>(x >> shift & kMask))) << shift;
  }
  return sum;
}

// Sums over the block, for all its threads.
template <int kSums>
__device__ __forceinline__ void block_sum(uint64_t (&sums)[kSums]) {
  __shared__ uint64_t of_warps[kMaxWarps][kSums];
  const int warp = threadIdx.x / kWarp, num_warps = blockDim.x / kWarp;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    sums[i] = warp_sum_exact(sums[i]);
    if (threadIdx.x % kWarp == 0) of_warps[warp][i] = sums[i];
    sums[i] = 0;
  }
  __syncthreads();
  for (int w = 0; w < num_warps; ++w) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] += of_warps[w][i];
  }
  __syncthreads();
}

__device__ __forceinline__ uint32_t block_min(uint32_t x) {
  __shared__ uint32_t of_warps[kMaxWarps];
  x = __reduce_min_sync(kAllLanes, x);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) x = min(x, of_warps[w]);
  __syncthreads();
  return x;
}

// The tokens of one row, for the threads of a block. kShared: the keys stay in shared memory.
template <bool kShared>
class Candidates {
 public:
  // Takes all tokens, with their logits divided by the temperature (0: as they are).
  __device__ Candidates(const float* logits, int n, float temperature)
      : logits_(logits), n_(n), temperature_(temperature == 0 ? 1 : temperature) {
    uint32_t lowest = UINT32_MAX, highest = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
      const uint32_t made = make_key(i);
      if constexpr (kShared) keys()[i] = made;
      lowest = min(lowest, made);
      highest = max(highest, made);
    }
    lowest = block_min(lowest);
    highest_ = ~block_min(~highest);
    best_score_ = key_to_float(highest_);
    good_ = lowest >= kMinusInfinityKey && highest_ < kInfinityKey && highest_ > kMinusInfinityKey;
  }

  // Whether the logits can be drawn from; the CPU refuses them if not.
  __device__ bool good() const { return good_; }

  // The first of the highest scores.
  __device__ int32_t best() const {
    uint32_t first = UINT32_MAX;
    for (int i = threadIdx.x; i < n_; i += blockDim.x) {
      if (key(i) == highest_) first = min(first, static_cast<uint32_t>(i));
    }
    return static_cast<int32_t>(block_min(first));
  }

  // The lowest key that top-k, then top-p keeps.
  __device__ uint32_t threshold(int32_t top_k, float top_p) const {
    uint32_t lowest = 0;
    if (top_k > 0 && top_k < n_) lowest = find_threshold(top_k, [](uint32_t) -> uint64_t { return 1; });
    if (top_p < 1) {
      uint64_t total[1] = {};
      for (int i = threadIdx.x; i < n_; i += blockDim.x) total[0] += kept_weight(i, lowest);
      block_sum(total);
      // Keys >= `lowest` weigh at least the limit, so the new threshold is not lower.
      lowest = find_threshold(top_p_limit(top_p, total[0]), [this](uint32_t key) { return weight(key); });
    }
    return lowest;
  }

  // Draws from the tokens with keys >= threshold. Each warp weighs a part of the row; the one with the target reads its
  // part again.
  __device__ int32_t draw(uint32_t threshold, uint64_t random) const {
    __shared__ uint64_t of_warps[kMaxWarps];
    __shared__ int32_t drawn;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, num_warps = blockDim.x / kWarp;
    const int piece = (n_ + num_warps - 1) / num_warps;
    const int begin = min(warp * piece, n_), end = min(begin + piece, n_);
    uint64_t sum = 0;
    for (int i = begin + lane; i < end; i += kWarp) sum += kept_weight(i, threshold);
    sum = warp_sum_exact(sum);
    if (lane == 0) of_warps[warp] = sum;
    __syncthreads();
    uint64_t total = 0, cumulative = 0;
    for (int w = 0; w < num_warps; ++w) {
      if (w == warp) cumulative = total;
      total += of_warps[w];
    }
    const uint64_t target = scale_random(random, total);
    if (cumulative <= target && target < cumulative + sum) {
      for (int i = begin; i < end; i += kWarp) {
        uint64_t up_to = i + lane < end ? kept_weight(i + lane, threshold) : 0;
#pragma unroll
        for (int by = 1; by < kWarp; by *= 2) {
          const uint64_t before = __shfl_up_sync(kAllLanes, up_to, by);
          if (lane >= by) up_to += before;
        }
        const unsigned beyond = __ballot_sync(kAllLanes, cumulative + up_to > target);
        if (beyond != 0) {
          if (lane == 0) drawn = i + __ffs(static_cast<int>(beyond)) - 1;
          break;
        }
        cumulative += __shfl_sync(kAllLanes, up_to, kWarp - 1);
      }
    }
    __syncthreads();
    return drawn;
  }

  __device__ float score(int i) const { return divide(logits_[i], temperature_); }

 private:
  __device__ static uint32_t* keys() { return reinterpret_cast<uint32_t*>(dynamic_shared()); }
  __device__ uint32_t make_key(int i) const { return order_key(score(i)); }

  __device__ uint32_t key(int i) const {
    if constexpr (kShared) return keys()[i];
    else return make_key(i);
  }

  __device__ uint64_t weight(uint32_t key) const { return draw_weight(add(key_to_float(key), -best_score_)); }

  __device__ uint64_t kept_weight(int i, uint32_t threshold) const {
    const uint32_t k = key(i);
    return k >= threshold ? weight(k) : 0;
  }

  // The largest key t for which keys >= t together weigh at least `limit`, as all keys do.
  template <typename Weight>
  __device__ uint32_t find_threshold(uint64_t limit, const Weight& weight) const {
    constexpr int kBits = 2, kCandidates = (1 << kBits) - 1;
    uint32_t found = 0;
    for (int shift = 32 - kBits; shift >= 0; shift -= kBits) {
      const uint32_t step = 1u << shift;
      uint64_t sums[kCandidates] = {};
      for (int i = threadIdx.x; i < n_; i += blockDim.x) {
        const uint32_t k = key(i);
        if (k < found + step) continue;
        const uint64_t w = weight(k);
#pragma unroll
        for (int c = 0; c < kCandidates; ++c) sums[c] += k >= found + (c + 1) * step ? w : 0;
      }
      block_sum(sums);
      uint32_t reached = 0;
#pragma unroll
      for (int c = 0; c < kCandidates; ++c) reached += sums[c] >= limit;
      found += reached * step;
    }
    return found;
  }

  const float* logits_;
  int n_;
  float temperature_;
  uint32_t highest_;
  float best_score_;
  bool good_;
};

template <bool kShared>
__device__ int32_t draw_token(const float* logits, int64_t n, const Sampling& sampling, uint64_t random) {
  const Candidates<kShared> candidates(logits, static_cast<int>(n), sampling.temperature);
  if (!candidates.good()) return kNothingDrawn;
  if (sampling.temperature == 0) return candidates.best();
  return candidates.draw(candidates.threshold(sampling.top_k, sampling.top_p), random);
}

__device__ bool is_good(const Sampling& sampling) { return sampling.has_temperature() && sampling.has_top_p(); }

__device__ bool is_good_slot(const SampleAudioFrame& args, int32_t i) {
  if (i < 0 || i >= args.num_slots) return false;
  const int32_t* fields = args.slot(i).state;
  return is_convention(fields[kConvention]) && fields[kHistoryCount] >= 0 && is_good(args.sampling[i]) &&
         args.ras_win_len[i] <= args.ring_length;
}

// The codes of all codebooks, drawn or forced; the slots are not changed.
template <bool kShared>
__global__ void __launch_bounds__(kMaxThreads, 1) sample_audio_codes_kernel(SampleAudioFrame args) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t row = blockIdx.x / args.num_codebooks;
  const auto k = static_cast<int32_t>(blockIdx.x % args.num_codebooks);
  const int32_t i = args.slots[row];
  int32_t code = kNothingDrawn;
  if (is_good_slot(args, i)) {
    const Slot slot = args.slot(i);
    const Sampling sampling = args.sampling[i];
    const float* logits = args.logits + blockIdx.x * args.vocabulary;
    auto draw = [&](const Sampling& how, uint32_t which) {
      return draw_token<kShared>(logits, args.vocabulary, how, random_bits(args.seed[i], slot.state[kFrame], k, which));
    };
    code = slot.forced_code(k, sampling.temperature == 0);
    const bool forced = code != kDrawn;
    if (!forced) code = draw(sampling, kMainDraw);
    if (code != kNothingDrawn &&
        slot.is_repetition(k, code, forced, args.ras_win_len[i], args.ras_win_max_num_repeat[i])) {
      code = draw(repetition_sampling(), kRepetitionDraw);
    }
  }
  if (threadIdx.x == 0) args.codes[blockIdx.x] = code;
}

// A thread completes a row's frame and advances its slot, after the draws of all codebooks: some hundred bytes.
__global__ void __launch_bounds__(kWarp) finish_audio_frames_kernel(SampleAudioFrame args) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  if (row >= args.num_rows) return;
  if (is_good_slot(args, args.slots[row])) args.finish_row(row);
  else args.active[row] = 0;
}

template <bool kShared>
__global__ void __launch_bounds__(kMaxThreads, 1) sample_text_kernel(SampleText args) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t row = blockIdx.x;
  const int32_t i = args.slots[row];
  int32_t token = kNothingDrawn;
  if (i >= 0 && i < args.num_slots && is_good(args.sampling[i])) {
    const uint64_t random = random_bits(args.seed[i], args.steps[row], kTextStream, kMainDraw);
    token = draw_token<kShared>(args.logits + row * args.vocabulary, args.vocabulary, args.sampling[i], random);
  }
  if (threadIdx.x == 0) args.tokens[row] = token;
}

template <bool kShared>
__global__ void __launch_bounds__(kMaxThreads, 1) process_logits_kernel(ProcessLogits args) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t row = blockIdx.x;
  const Sampling sampling = args.sampling[row];
  const Candidates<kShared> candidates(
      args.logits + row * args.vocabulary, static_cast<int>(args.vocabulary), sampling.temperature);
  const bool good = candidates.good() && is_good(sampling) && sampling.temperature > 0;
  const uint32_t threshold = good ? candidates.threshold(sampling.top_k, sampling.top_p) : 0;
  float* out = args.out + row * args.vocabulary;
  for (int i = threadIdx.x; i < args.vocabulary; i += blockDim.x) {
    const float score = candidates.score(i);
    out[i] = !good ? NAN : order_key(score) >= threshold ? score : -INFINITY;
  }
}

// Launches `shared` if a row's keys fit shared memory, else `streamed`.
template <typename Arguments>
void launch_rows(
    const Launch& launch, void (*shared)(Arguments), void (*streamed)(Arguments), int64_t rows, const Arguments& args) {
  const bool fits = args.vocabulary <= kMaxSharedKeys;
  const int64_t warps = ceil_div(args.vocabulary, kLogitsOfThread * kWarp);
  launch(
      fits ? shared : streamed, dim3(static_cast<unsigned>(rows)),
      static_cast<int>(std::min<int64_t>(warps, kMaxWarps)) * kWarp, fits ? args.vocabulary * sizeof(uint32_t) : 0,
      args);
}

void sample_audio_frame_cuda(
    const Tensor& codes, const Tensor& active, const Tensor& positions, const Tensor& state, const Tensor& history,
    const Tensor& logits, const Tensor& slots, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
    const Tensor& ras_win_len, const Tensor& ras_win_max_num_repeat, const Tensor& seed, int64_t bos_id,
    int64_t eos_id) {
  const SampleAudioFrame args = check_sample_audio_frame(
      codes, active, positions, state, history, logits, slots, temperature, top_k, top_p, ras_win_len,
      ras_win_max_num_repeat, seed, bos_id, eos_id);
  if (args.num_rows == 0) return;
  const Launch launch("sample_audio_frame", logits);
  launch_rows(
      launch, sample_audio_codes_kernel<true>, sample_audio_codes_kernel<false>, args.num_rows * args.num_codebooks,
      args);
  launch(finish_audio_frames_kernel, dim3(static_cast<unsigned>(ceil_div(args.num_rows, kWarp))), kWarp, 0, args);
}

void sample_text_cuda(
    const Tensor& tokens, const Tensor& logits, const Tensor& slots, const Tensor& steps, const Tensor& temperature,
    const Tensor& top_k, const Tensor& top_p, const Tensor& seed) {
  const SampleText args = check_sample_text(tokens, logits, slots, steps, temperature, top_k, top_p, seed);
  if (args.num_rows == 0) return;
  const Launch launch("sample_text", logits);
  launch_rows(launch, sample_text_kernel<true>, sample_text_kernel<false>, args.num_rows, args);
}

void process_logits_cuda(
    const Tensor& out, const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p) {
  const ProcessLogits args = check_process_logits(out, logits, temperature, top_k, top_p);
  if (args.num_rows == 0) return;
  const Launch launch("process_logits", logits);
  launch_rows(launch, process_logits_kernel<true>, process_logits_kernel<false>, args.num_rows, args);
}

}  // namespace

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY_IMPL(higgs_native, HIGGS_NATIVE_CUDA_KEY, m) {
  m.impl("sample_audio_frame", TORCH_BOX(&higgs_native::cuda::sample_audio_frame_cuda));
  m.impl("sample_text", TORCH_BOX(&higgs_native::cuda::sample_text_cuda));
  m.impl("process_logits", TORCH_BOX(&higgs_native::cuda::process_logits_cuda));
}
