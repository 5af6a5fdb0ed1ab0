// Draws codes and text tokens from logits (common/draw.h) and advances the delay-pattern state machine
// (common/delay_state.h).
//
// Threads: a block draws from a row (for audio: a codebook of a row): sampling/candidates.h.
// Bytes: the logits once; threads keep their keys in registers. A row of more than kMaxHeld is read in every pass, up to
// 37 times, from L2.
//
// The host does not read values, so none is refused. Where the CPU raises, because of logits, parameters or a slot, the
// code or token is -1 and processed logits are NaN. A slot keeps its state if it, not its logits, is wrong.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "args/sampling.h"
#include "cuda/launch.h"
#include "cuda/sampling/candidates.h"

namespace higgs_native::cuda {

namespace {

constexpr int32_t kNothingDrawn = -1;

template <bool kHeld>
__device__ int32_t draw_token(const float* logits, int64_t n, const Sampling& sampling, uint64_t random) {
  Candidates<kHeld> candidates(logits, static_cast<int>(n), sampling.temperature);
  if (!candidates.good()) return kNothingDrawn;
  if (sampling.temperature == 0) return candidates.best();
  candidates.keep(sampling.top_k, sampling.top_p);
  return candidates.draw(random);
}

__device__ bool is_good(const Sampling& sampling) { return sampling.has_temperature() && sampling.has_top_p(); }

// The numbers of a row's slot, in shared memory. One after the other, each would wait for L2.
struct SlotInputs {
  static constexpr int kWindow = kStateFields, kMaxRepeat = kWindow + 1, kTopK = kWindow + 2,
                       kTemperature = kWindow + 3;
  static constexpr int kTopP = kWindow + 4, kSeed = kWindow + 5, kWords = kSeed + 2;

  int32_t words[kWords];  // the state comes first

  // Thread `index` loads a word. A barrier must follow.
  __device__ __forceinline__ void load(const SampleAudioFrame& args, int32_t slot, int index) {
    if (index >= kWords) return;
    const auto words_of = [slot](const auto* values) { return reinterpret_cast<const int32_t*>(values + slot); };
    const int32_t* from = args.state + static_cast<int64_t>(slot) * kStateFields + index;
    if (index == kWindow) from = args.ras_win_len + slot;
    if (index == kMaxRepeat) from = args.ras_win_max_num_repeat + slot;
    if (index == kTopK) from = args.sampling.top_k + slot;
    if (index == kTemperature) from = words_of(args.sampling.temperature);
    if (index == kTopP) from = words_of(args.sampling.top_p);
    if (index >= kSeed) from = words_of(args.seed) + (index - kSeed);
    words[index] = *from;
  }

  __device__ __forceinline__ Sampling sampling() const {
    return {bits_as_float(words[kTemperature]), words[kTopK], bits_as_float(words[kTopP])};
  }
  __device__ __forceinline__ int64_t seed() const {
    const auto low = static_cast<uint32_t>(words[kSeed]), high = static_cast<uint32_t>(words[kSeed + 1]);
    return static_cast<int64_t>(static_cast<uint64_t>(high) << 32 | low);
  }

  __device__ __forceinline__ bool is_good(const SampleAudioFrame& args) const {
    return is_convention(words[kConvention]) && words[kHistoryCount] >= 0 && cuda::is_good(sampling()) &&
           words[kWindow] <= args.ring_length;
  }

  // The slot, with its state here.
  __device__ __forceinline__ Slot slot(const SampleAudioFrame& args, int32_t index) {
    Slot slot = args.slot(index);
    slot.state = words;
    return slot;
  }
};

__device__ bool is_slot(const SampleAudioFrame& args, int32_t i) { return i >= 0 && i < args.num_slots; }

// Slot::is_repetition, by a warp.
__device__ bool is_repetition(const Slot& slot, int32_t k, int32_t code, bool forced, int32_t window, int32_t max_num) {
  const int32_t frames = slot.frames_checked(code, forced, window), lane = static_cast<int>(threadIdx.x) % kWarp;
  int32_t repeats = 0;
  for (int32_t first = 1; first <= frames; first += kWarp) {
    const int32_t back = first + lane;
    const bool same = back <= frames && *slot.past_code(slot.state[kHistoryCount] - back, k) == code;
    repeats += __popc(__ballot_sync(kAllLanes, same));
  }
  return frames >= 0 && repeats >= max_num;
}

// The codes of all codebooks, drawn or forced; the slots are not changed.
template <bool kHeld>
__global__ void __launch_bounds__(kMaxThreads, 1) sample_audio_codes_kernel(SampleAudioFrame args) {
  __shared__ SlotInputs inputs;
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t row = blockIdx.x / args.num_codebooks;
  const auto k = static_cast<int32_t>(blockIdx.x % args.num_codebooks);
  const int32_t i = args.slots[row];
  const bool exists = is_slot(args, i);
  if (exists) inputs.load(args, i, static_cast<int>(threadIdx.x));
  __syncthreads();
  int32_t code = kNothingDrawn;
  if (exists && inputs.is_good(args)) {
    const Slot slot = inputs.slot(args, i);
    const Sampling sampling = inputs.sampling();
    const float* logits = args.logits + blockIdx.x * args.vocabulary;
    auto draw = [&](const Sampling& how, uint32_t which) {
      return draw_token<kHeld>(logits, args.vocabulary, how, random_bits(inputs.seed(), slot.state[kFrame], k, which));
    };
    code = slot.forced_code(k, sampling.temperature == 0);
    const bool forced = code != kDrawn;
    if (!forced) code = draw(sampling, kMainDraw);
    const int32_t window = inputs.words[SlotInputs::kWindow], max_num = inputs.words[SlotInputs::kMaxRepeat];
    if (code != kNothingDrawn && is_repetition(slot, k, code, forced, window, max_num)) {
      code = draw(repetition_sampling(), kRepetitionDraw);
    }
  }
  if (threadIdx.x == 0) args.codes[blockIdx.x] = code;
}

// A block of a warp completes a row's frame and advances its slot, after the draws of all codebooks: some hundred bytes.
__global__ void __launch_bounds__(kWarp) finish_audio_frames_kernel(SampleAudioFrame args) {
  __shared__ SlotInputs inputs;
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t row = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x);
  auto* codes = reinterpret_cast<int32_t*>(dynamic_shared());
  int32_t* codes_of_row = args.codes + row * args.num_codebooks;
  for (int k = lane; k < args.num_codebooks; k += kWarp) codes[k] = codes_of_row[k];
  const int32_t i = args.slots[row];
  const bool exists = is_slot(args, i);
  if (exists) inputs.load(args, i, lane);
  __syncwarp();
  const bool is_good = exists && inputs.is_good(args);
  __syncwarp();
  if (!is_good) {
    if (lane == 0) args.active[row] = 0;
    return;
  }
  if (lane == 0) args.finish_row(row, inputs.slot(args, i), codes);
  __syncwarp();
  for (int k = lane; k < args.num_codebooks; k += kWarp) codes_of_row[k] = codes[k];
  if (lane < kStateFields) args.slot(i).state[lane] = inputs.words[lane];
}

template <bool kHeld>
__global__ void __launch_bounds__(kMaxThreads, 1) sample_text_kernel(SampleText args) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t row = blockIdx.x;
  const int32_t i = args.slots[row];
  int32_t token = kNothingDrawn;
  if (i >= 0 && i < args.num_slots && is_good(args.sampling[i])) {
    const uint64_t random = random_bits(args.seed[i], args.steps[row], kTextStream, kMainDraw);
    token = draw_token<kHeld>(args.logits + row * args.vocabulary, args.vocabulary, args.sampling[i], random);
  }
  if (threadIdx.x == 0) args.tokens[row] = token;
}

template <bool kHeld>
__global__ void __launch_bounds__(kMaxThreads, 1) process_logits_kernel(ProcessLogits args) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t row = blockIdx.x;
  const Sampling sampling = args.sampling[row];
  Candidates<kHeld> candidates(
      args.logits + row * args.vocabulary, static_cast<int>(args.vocabulary), sampling.temperature);
  const bool good = candidates.good() && is_good(sampling) && sampling.temperature > 0;
  if (good) candidates.keep(sampling.top_k, sampling.top_p);
  float* out = args.out + row * args.vocabulary;
  for (int i = threadIdx.x; i < args.vocabulary; i += blockDim.x) {
    const float score = candidates.score(i);
    out[i] = !good ? NAN : candidates.keeps(score) ? score : -INFINITY;
  }
}

// Launches `held` if a block's threads can keep a row's keys, else `streamed`.
template <typename Arguments>
void launch_rows(
    const Launch& launch, void (*held)(Arguments), void (*streamed)(Arguments), int64_t rows, const Arguments& args) {
  const int64_t warps = ceil_div(args.vocabulary, kKeysOfThread * kWarp);
  launch(
      args.vocabulary <= kMaxHeld ? held : streamed, dim3(static_cast<unsigned>(rows)),
      static_cast<int>(std::min<int64_t>(warps, kMaxWarps)) * kWarp, 0, args);
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
  launch(
      finish_audio_frames_kernel, dim3(static_cast<unsigned>(args.num_rows)), kWarp,
      args.num_codebooks * sizeof(int32_t), args);
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
