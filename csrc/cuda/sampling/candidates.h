// The tokens of a row of logits: what top-k and top-p keep of them, and the draw.
//
// Logits become 32-bit keys in the order of the scores. Top-k and top-p are thresholds on the keys. A pass over all keys
// finds two bits of a threshold, from the number, or the weight, of the keys at or above three candidates. Once few keys are
// left, they are listed and sorted instead, and each warp finds threshold and token by itself. All sums are integers,
// so that threads may add in any order and the draw equals the CPU's.
#pragma once

#include "common/draw.h"
#include "cuda/device.h"

namespace higgs_native::cuda {

namespace {

constexpr int kMaxThreads = 768;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr int kKeysOfThread = 8;
constexpr int64_t kMaxHeld = kMaxThreads * kKeysOfThread;
constexpr int kListedOfLane = 4, kMaxListed = kListedOfLane * kWarp;

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

__device__ __forceinline__ uint32_t warp_sum_exact(uint32_t x) { return __reduce_add_sync(kAllLanes, x); }

// Sums over the lanes up to this one.
__device__ __forceinline__ uint64_t sum_up_to_lane(uint64_t x, int lane) {
#pragma unroll
  for (int by = 1; by < kWarp; by *= 2) {
    const uint64_t before = __shfl_up_sync(kAllLanes, x, by);
    if (lane >= by) x += before;
  }
  return x;
}

// For the threads of a block, of which each warp has a part of the row. kHeld: threads keep the keys of their tokens.
template <bool kHeld>
class Candidates {
 public:
  // Takes all tokens, with their logits divided by the temperature (0: as they are).
  __device__ Candidates(const float* logits, int n, float temperature)
      : logits_(logits), n_(n), temperature_(temperature == 0 ? 1 : temperature) {
    __syncthreads();  // what an earlier object shares may still be read
    const int turns = kHeld ? kKeysOfThread : (n + num_warps() * kWarp - 1) / (num_warps() * kWarp);
    const int piece = turns * kWarp;
    begin_ = min(warp() * piece, n);
    end_ = min(begin_ + piece, n);
    if constexpr (kHeld) {
      float own[kKeysOfThread];  // all in flight before the first division
#pragma unroll
      for (int j = 0; j < kKeysOfThread; ++j) {
        const int i = begin_ + j * kWarp + lane();
        own[j] = i < end_ ? logits[i] : 0;
      }
#pragma unroll
      for (int j = 0; j < kKeysOfThread; ++j) {
        keys_[j] = begin_ + j * kWarp + lane() < end_ ? order_key(divide(own[j], temperature_)) : kNoKey;
      }
    }
    uint32_t extremes[2] = {};  // the lowest, inverted, and the highest
    for_keys([&](int i, uint32_t key) {
      if (i < end_) extremes[0] = max(extremes[0], ~key);
      extremes[1] = max(extremes[1], key);
    });
    block_max(extremes);
    highest_ = extremes[1];
    best_score_ = key_to_float(highest_);
    good_ = ~extremes[0] >= kMinusInfinityKey && highest_ < kInfinityKey && highest_ > kMinusInfinityKey;
  }

  // Whether the logits can be drawn from; the CPU refuses them if not.
  __device__ bool good() const { return good_; }

  // The first of the highest scores.
  __device__ int32_t best() {
    uint32_t first[1] = {};  // inverted
    for_keys([&](int i, uint32_t key) {
      if (key == highest_) first[0] = max(first[0], ~static_cast<uint32_t>(i));
    });
    block_max(first);
    return static_cast<int32_t>(~first[0]);
  }

  // Keeps the tokens that top-k, then top-p keeps.
  __device__ void keep(int32_t top_k, float top_p) {
    if (top_k > 0 && top_k < n_) {
      const uint32_t limit = top_k, enough = top_k <= kMaxListed ? kMaxListed : 0;
      threshold_ = find_threshold<true>(limit, enough, [](uint32_t) { return 1u; });
      if (top_k <= kMaxListed) list();
      if (num_listed_ > 0) return keep_listed(top_k, top_p);
    }
    if (top_p < 1) {
      uint64_t total[1] = {};
      for_keys([&](int, uint32_t key) { total[0] += kept_weight(key); });
      block_sum(total);
      // Keys >= threshold_ weigh at least the limit, so the new threshold is not lower.
      const uint64_t limit = top_p_limit(top_p, total[0]), enough = 0;
      threshold_ = find_threshold<false>(limit, enough, [this](uint32_t key) { return weight(key); });
    }
  }

  __device__ float score(int i) const { return divide(logits_[i], temperature_); }
  __device__ bool keeps(float score) const { return order_key(score) >= threshold_; }

  // Draws from the tokens that are kept.
  __device__ int32_t draw(uint64_t random) {
    if (num_listed_ > 0) return draw_listed(random);
    __shared__ uint64_t of_warps[kMaxWarps];
    __shared__ int32_t drawn;
    uint64_t sum = 0;
    for_keys([&](int, uint32_t key) { sum += kept_weight(key); });
    sum = warp_sum_exact(sum);
    if (lane() == 0) of_warps[warp()] = sum;
    __syncthreads();
    uint64_t total = 0, cumulative = 0;
    for (int w = 0; w < num_warps(); ++w) {
      if (w == warp()) cumulative = total;
      total += of_warps[w];
    }
    const uint64_t target = scale_random(random, total);
    if (cumulative <= target && target < cumulative + sum) {  // the warp with the target goes through its part again
      bool is_found = false;
      for_keys([&](int i, uint32_t key) {
        if (is_found) return;
        const uint64_t up_to = sum_up_to_lane(kept_weight(key), lane());
        const unsigned beyond = __ballot_sync(kAllLanes, cumulative + up_to > target);
        is_found = beyond != 0;
        if (is_found && lane() == 0) drawn = i + __ffs(static_cast<int>(beyond)) - 1;
        cumulative += __shfl_sync(kAllLanes, up_to, kWarp - 1);
      });
    }
    __syncthreads();
    return drawn;
  }

 private:
  static constexpr uint32_t kNoKey = 0;  // below the keys of all numbers
  static constexpr int kPiece = 16;  // listed keys that are compared at a time, so that loads don't wait for each other

  // Keys that are listed in the order of their tokens, and sorted from the highest on.
  struct Listed {
    alignas(16) uint32_t keys[kMaxListed];
    uint64_t weights[kMaxListed];
    int32_t tokens[kMaxListed];
    uint32_t sorted_keys[kMaxListed];
    uint64_t sorted_weights[kMaxListed];
    int32_t ties[kMaxListed];  // for each number of higher keys, the keys that have so many
  };

  static __device__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  static __device__ int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  static __device__ int num_warps() { return static_cast<int>(blockDim.x) / kWarp; }

  static __device__ __forceinline__ Listed& listed() {
    __shared__ Listed shared;
    return shared;
  }

  // Calls take(i, key) for the tokens of the warp, one of a lane at a time: all lanes take part, with kNoKey from the
  // end on.
  template <typename Take>
  __device__ __forceinline__ void for_keys(const Take& take) const {
    if constexpr (kHeld) {
#pragma unroll
      for (int j = 0; j < kKeysOfThread; ++j) take(begin_ + j * kWarp + lane(), keys_[j]);
    } else {
      for (int first = begin_; first < end_; first += kWarp) {
        const int i = first + lane();
        take(i, i < end_ ? make_key(i) : kNoKey);
      }
    }
  }

  // Memory for values of each warp. Every second call has the same, so that a barrier lies between two of them.
  template <typename T, int kCount>
  __device__ __forceinline__ auto exchanged() {
    __shared__ T of_warps[2][kCount][kMaxWarps];
    turn_ ^= 1;
    return of_warps[turn_];
  }

  // The sums over the block, for all its threads.
  template <typename T, int kCount>
  __device__ __forceinline__ void block_sum(T (&sums)[kCount]) {
    auto* of_warps = exchanged<T, kCount>();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const T sum = warp_sum_exact(sums[i]);
      if (lane() == 0) of_warps[i][warp()] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] = warp_sum_exact(lane() < num_warps() ? of_warps[i][lane()] : T{0});
  }

  template <int kCount>
  __device__ __forceinline__ void block_max(uint32_t (&values)[kCount]) {
    auto* of_warps = exchanged<uint32_t, kCount>();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const uint32_t largest = __reduce_max_sync(kAllLanes, values[i]);
      if (lane() == 0) of_warps[i][warp()] = largest;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = __reduce_max_sync(kAllLanes, lane() < num_warps() ? of_warps[i][lane()] : 0);
    }
  }

  __device__ uint32_t make_key(int i) const { return order_key(score(i)); }

  __device__ uint64_t weight(uint32_t key) const { return draw_weight(add(key_to_float(key), -best_score_)); }

  __device__ uint64_t kept_weight(uint32_t key) const { return key >= threshold_ ? weight(key) : 0; }

  // The largest key t for which keys >= t together weigh at least `limit`, as all keys do. If each weighs one, kCounts, the
  // search ends at any t that at most `enough` keys are at or above, or `limit` keys exactly.
  template <bool kCounts, typename Sum, typename Weight>
  __device__ uint32_t find_threshold(Sum limit, Sum enough, const Weight& weight) {
    constexpr int kBits = 2, kCandidates = (1 << kBits) - 1;
    uint32_t found = 0;
    for (int shift = 32 - kBits; shift >= 0; shift -= kBits) {
      const uint32_t step = 1u << shift;
      Sum sums[kCandidates] = {};
      for_keys([&](int, uint32_t key) {
        if (!kCounts && key < found + step) return;
        const Sum w = weight(key);
#pragma unroll
        for (int c = 0; c < kCandidates; ++c) sums[c] += key >= found + (c + 1) * step ? w : 0;
      });
      block_sum(sums);
      uint32_t reached = 0;
      Sum above = 0;  // what the keys at or above the next `found` weigh, if it is another one
#pragma unroll
      for (int c = 0; c < kCandidates; ++c) {
        if (sums[c] < limit) break;
        ++reached;
        above = sums[c];
      }
      found += reached * step;
      if (kCounts && reached > 0 && (above == limit || above <= enough)) break;
    }
    return found;
  }

  // Lists the keys >= threshold_, if they are not too many.
  __device__ void list() {
    int own = 0;
    for_keys([&](int, uint32_t key) { own += __popc(__ballot_sync(kAllLanes, key >= threshold_)); });
    auto* of_warps = exchanged<uint32_t, 1>()[0];
    if (lane() == 0) of_warps[warp()] = own;
    __syncthreads();
    int count = 0, at = 0;
    for (int w = 0; w < num_warps(); ++w) {
      if (w == warp()) at = count;
      count += static_cast<int>(of_warps[w]);
    }
    if (count > kMaxListed) return;
    num_listed_ = count;
    for_keys([&](int i, uint32_t key) {
      const bool is_listed = key >= threshold_;
      const unsigned all = __ballot_sync(kAllLanes, is_listed);
      if (is_listed) {
        const int own_at = at + __popc(all & ((1u << lane()) - 1));
        listed().keys[own_at] = key;
        listed().tokens[own_at] = i;
      }
      at += __popc(all);
    });
    const int threads = static_cast<int>(blockDim.x);
    for (int i = static_cast<int>(threadIdx.x); i < kMaxListed; i += threads) {
      listed().ties[i] = 0;
      if (i >= count) listed().keys[i] = kNoKey;
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
      const uint32_t key = listed().keys[i];
      const uint64_t own_weight = weight(key);
      int higher = 0;
      for (int first = 0; first < count; first += kPiece) {
        uint4 others[kPiece / 4];
#pragma unroll
        for (int j = 0; j < kPiece / 4; ++j) others[j] = *reinterpret_cast<const uint4*>(listed().keys + first + 4 * j);
#pragma unroll
        for (int j = 0; j < kPiece / 4; ++j) {
          higher += (others[j].x > key) + (others[j].y > key) + (others[j].z > key) + (others[j].w > key);
        }
      }
      higher += atomicAdd(&listed().ties[higher], 1);
      listed().weights[i] = own_weight;
      listed().sorted_keys[higher] = key;
      listed().sorted_weights[higher] = own_weight;
    }
    __syncthreads();
  }

  // The weights of a lane's four keys, and their sums with all before.
  struct LaneSums {
    uint64_t up_to[kListedOfLane], total;

    __device__ __forceinline__ LaneSums(const uint32_t* keys, const uint64_t* weights, int count, uint32_t threshold) {
      uint64_t sum = 0;
#pragma unroll
      for (int i = 0; i < kListedOfLane; ++i) {
        const int at = lane() * kListedOfLane + i;
        sum += at < count && keys[at] >= threshold ? weights[at] : 0;
        up_to[i] = sum;
      }
      const uint64_t with_own = sum_up_to_lane(sum, lane());
#pragma unroll
      for (int i = 0; i < kListedOfLane; ++i) up_to[i] += with_own - sum;
      total = __shfl_sync(kAllLanes, with_own, kWarp - 1);
    }

    // The first place whose sum is at least `limit`, for all lanes.
    __device__ __forceinline__ int first_at_least(uint64_t limit) const {
      int below = 0;
#pragma unroll
      for (int i = 0; i < kListedOfLane; ++i) below += up_to[i] < limit;
      return static_cast<int>(__reduce_add_sync(kAllLanes, static_cast<unsigned>(below)));
    }
  };

  __device__ void keep_listed(int32_t top_k, float top_p) {
    threshold_ = listed().sorted_keys[top_k - 1];
    if (top_p >= 1) return;
    const LaneSums sums(listed().sorted_keys, listed().sorted_weights, num_listed_, threshold_);
    threshold_ = listed().sorted_keys[sums.first_at_least(top_p_limit(top_p, sums.total))];
  }

  __device__ int32_t draw_listed(uint64_t random) const {
    const LaneSums sums(listed().keys, listed().weights, num_listed_, threshold_);
    return listed().tokens[sums.first_at_least(scale_random(random, sums.total) + 1)];
  }

  const float* logits_;
  int n_, begin_, end_;  // of the warp: tokens begin_ .. end_ - 1
  float temperature_;
  uint32_t keys_[kHeld ? kKeysOfThread : 1];
  uint32_t highest_, threshold_ = kNoKey + 1;
  float best_score_;
  bool good_;
  int turn_ = 0, num_listed_ = 0;
};

}  // namespace

}  // namespace higgs_native::cuda
