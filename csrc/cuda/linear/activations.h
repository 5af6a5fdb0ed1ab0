// GEMM activations: x, multiplied by the norm's weight and rounded to the format of the weights, in the order of the
// tensor cores' fragments. Up to kRowTile rows are read by every block, and rounded to integers once per block
// (shared_activations.h); more rows are packed once, by pack_activations_kernel.
#pragma once

#include "cuda/linear.h"
#include "cuda/linear/weight_formats.h"

namespace higgs_native::cuda {

namespace {

// A lane's share of x in a step. Lanes of rows that x lacks have another row, whose sums are left out.
template <WeightFormat F>
struct Activations {
  uint32_t words[Step<F>::kWords];
};

// The rest of rounding to integers, for the lane's row of x, group_lane(); the same in the four lanes of a row.
struct RowScale {
  float scale;
  int32_t zero_correction;  // for 4-bit weights, stored as w + 8: 8 times the sum of the row's integers
};

// The same of the lane's columns of the fragments: rows 2 t and 2 t + 1 of x.
struct alignas(16) ColumnScales {
  float scales[2];
  int32_t zero_corrections[2];
};

// x in the order of the fragments, in memory, for more rows than one tile.
struct PackedActivations {
  uint32_t* words;  // [tiles, steps, kWords / 4, 32 lanes, 4]; for warpgroups [tiles, steps, kWords, 32 lanes]
  float* scales;    // [tiles, steps, kRowTile]
  int32_t* zero_corrections;  // [tiles, steps, kRowTile], of 4-bit weights
  float* norm_factors;        // [tiles, kRowTile], of RMSNorm; or null

  __device__ __forceinline__ float norm_factor(int row) const { return norm_factors ? norm_factors[row] : 1.f; }

  // Where the lane leaves its words for warpgroups, of tile and step.
  template <WeightFormat F>
  __device__ __forceinline__ void write(const Activations<F>& a, int tile, int step, int steps) const {
    uint32_t* to = words + (static_cast<int64_t>(tile) * steps + step) * Step<F>::kWords * kWarp;
#pragma unroll
    for (int i = 0; i < Step<F>::kWords; ++i) to[i * kWarp + static_cast<int>(threadIdx.x) % kWarp] = a.words[i];
  }

  // The lane's share of a tile in a step.
  template <WeightFormat F>
  __device__ __forceinline__ Activations<F> read(int tile, int step, int steps) const {
    using S = Step<F>;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t at = static_cast<int64_t>(tile) * steps + step;
    const auto* from = reinterpret_cast<const uint4*>(words) + at * (S::kWords / 4) * kWarp + lane;
    Activations<F> x;
#pragma unroll
    for (int i = 0; i < S::kWords / 4; ++i) {
      const uint4 four = from[i * kWarp];
      x.words[4 * i] = four.x;
      x.words[4 * i + 1] = four.y;
      x.words[4 * i + 2] = four.z;
      x.words[4 * i + 3] = four.w;
    }
    return x;
  }

  template <WeightFormat F>
  __device__ __forceinline__ ColumnScales columns(int tile, int step, int steps) const {
    const int64_t at = (static_cast<int64_t>(tile) * steps + step) * kRowTile + 2 * lane_in_group();
    const float2 two = *reinterpret_cast<const float2*>(scales + at);
    ColumnScales columns = {{two.x, two.y}, {0, 0}};
    if constexpr (F == WeightFormat::int4) {
      const uint2 corrections = *reinterpret_cast<const uint2*>(zero_corrections + at);
      columns.zero_corrections[0] = static_cast<int32_t>(corrections.x);
      columns.zero_corrections[1] = static_cast<int32_t>(corrections.y);
    }
    return columns;
  }
};

// The sum over the four lanes that share a row.
__device__ __forceinline__ float group_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// Whether the columns of a whole step can be read 4 values at a time.
template <WeightFormat F>
__device__ __forceinline__ bool is_vectorized(const Gemm& p, int step) {
  return p.vectorized && (step + 1) * Step<F>::kColumns <= static_cast<int>(p.weight.k);
}

// Values [column, column + kCount) of a row of k; zeros from k on.
template <int kCount>
__device__ __forceinline__ void load_row(float (&v)[kCount], const float* row, int column, int k, bool vectorized) {
  if (vectorized) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(row + column + i);
      v[i] = four.x;
      v[i + 1] = four.y;
      v[i + 2] = four.z;
      v[i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = column + i < k ? row[column + i] : 0.f;
  }
}

// Values [column, column + kCount) of a norm's weight. Words of 16-bit numbers are loaded at once, so that they come
// beside x; others are loaded when they are used. norm_factor() has the other factor of RMSNorm.
template <int kCount>
struct NormColumns {
  const void* weight;
  NumberType type;
  int column, k;
  bool vectorized;
  uint2 words[kCount / 4];

  __device__ __forceinline__ NormColumns(const RowNorm& norm, int row, int first, int columns, bool is_vectorized)
      : weight(row < norm.num_text_rows ? norm.text_weight : norm.audio_weight),
        type(norm.type),
        column(first),
        k(columns),
        vectorized(is_vectorized) {
    if (!vectorized || type == NumberType::float32) return;
    const auto* from = reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(weight) + column);
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) words[i] = from[i];
  }

  __device__ __forceinline__ void multiply(float (&v)[kCount]) const {
    if (type == NumberType::float32) {
      float w[kCount];
      load_row(w, static_cast<const float*>(weight), column, k, vectorized);
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] *= w[i];
    } else if (type == NumberType::bfloat16) {
      multiply_halves<bfloat16>(v);
    } else {
      multiply_halves<float16>(v);
    }
  }

 private:
  template <typename T>
  __device__ __forceinline__ void multiply_halves(float (&v)[kCount]) const {
    if (vectorized) {
#pragma unroll
      for (int i = 0; i < kCount; i += 4) {
        const float2 first = unpack<T>(words[i / 4].x), second = unpack<T>(words[i / 4].y);
        v[i] *= first.x;
        v[i + 1] *= first.y;
        v[i + 2] *= second.x;
        v[i + 3] *= second.y;
      }
    } else {
      const auto* from = static_cast<const uint16_t*>(weight) + column;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (column + i < k) v[i] *= unpack<T>(from[i]).x;
      }
    }
  }
};

// Rounds a lane's values to 8 bits with the scale of the group of 128 columns. A value that is not finite makes the
// scale NaN.
template <WeightFormat F>
__device__ __forceinline__ RowScale quantize(Activations<F>& to, const float (&v)[Step<F>::kLaneColumns]) {
  // Magnitudes are in the order of their bits; what is not finite is above. The largest bits with a sign are those of
  // the lowest number, if one is negative, and the largest as signed integers are those of the highest.
  uint32_t with_sign = 0;
  int32_t as_signed = 0;
#pragma unroll
  for (int i = 0; i < Step<F>::kLaneColumns; ++i) {
    with_sign = max(with_sign, float_as_bits(v[i]));
    as_signed = max(as_signed, static_cast<int32_t>(float_as_bits(v[i])));
  }
  uint32_t bits = max(with_sign & 0x7fffffffu, static_cast<uint32_t>(as_signed));
  bits = max(bits, __shfl_xor_sync(kAllLanes, bits, 1));
  bits = max(bits, __shfl_xor_sync(kAllLanes, bits, 2));
  const float maximum = bits_as_float(bits);
  const bool finite = maximum <= kMaxFloat;
  const float inverse = maximum > kMinRounded && finite ? 127.f / maximum : 0.f;
  int32_t sum = 0;
#pragma unroll
  for (int word = 0; word < Step<F>::kWords; ++word) {
    uint32_t four[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = round_to_byte(v[4 * word + i], inverse);
    to.words[word] = pack_bytes(four);
    if constexpr (F == WeightFormat::int4) add_bytes(sum, to.words[word]);
  }
  RowScale scale = {finite ? maximum / 127.f : bits_as_float(0x7fc00000u), 0};
  if constexpr (F == WeightFormat::int4) {
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    scale.zero_correction = 8 * sum;
  }
  return scale;
}

template <int kCount>
__device__ __forceinline__ void add_squares(float& squares, const float (&v)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) squares = fmaf(v[i], v[i], squares);
}

// The sum of the squares of a lane's columns of a step, in four sums that need not wait for each other.
template <int kCount>
__device__ __forceinline__ float squares_of_step(const float (&v)[kCount]) {
  float sums[4] = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i % 4] = fmaf(v[i], v[i], sums[i % 4]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Reads the lane's share of row `row` of x in a step.
template <WeightFormat F>
__device__ __forceinline__ void load_activations(float (&v)[Step<F>::kLaneColumns], const Gemm& p, int row, int step) {
  using S = Step<F>;
  const int k = static_cast<int>(p.weight.k), column = step * S::kColumns + lane_in_group() * S::kLaneColumns;
  load_row(v, p.x + static_cast<int64_t>(row) * k, column, k, is_vectorized<F>(p, step));
}

// Rounds a lane's values to the 16 bits that tensor cores multiply; to floats for weights of 32 bits.
template <WeightFormat F>
__device__ __forceinline__ Activations<F> words_of(const float (&v)[Step<F>::kLaneColumns]) {
  using S = Step<F>;
  static_assert(!S::kInteger);
  Activations<F> a;
  if constexpr (F == WeightFormat::fp8) {
    // Columns 0 and 2 of each four, then 1 and 3: the order in which widening gives the weights.
#pragma unroll
    for (int i = 0; i < S::kWords; ++i) {
      const int first = i / 2 * 4 + i % 2;
      a.words[i] = pack<bfloat16>(v[first], v[first + 2]);
    }
  } else if constexpr (F == WeightFormat::f32) {
#pragma unroll
    for (int i = 0; i < S::kWords; ++i) a.words[i] = float_as_bits(v[i]);
  } else {
#pragma unroll
    for (int i = 0; i < S::kWords; ++i) a.words[i] = pack<TensorCoreType<F>>(v[2 * i], v[2 * i + 1]);
  }
  return a;
}

// Adds the squares of what load_activations() has read to `squares`, applies the norm's weight and rounds. `scale`: of
// integers.
template <WeightFormat F>
__device__ __forceinline__ Activations<F> round_activations(
    float& squares, float (&v)[Step<F>::kLaneColumns], const Gemm& p, int row, int step, RowScale* scale = nullptr) {
  using S = Step<F>;
  auto norm_columns = [&](bool vectorized) {
    const int k = static_cast<int>(p.weight.k), column = step * S::kColumns + lane_in_group() * S::kLaneColumns;
    return NormColumns<S::kLaneColumns>(p.norm, row, column, k, vectorized);
  };
  const bool has_norm = p.norm.text_weight != nullptr;
  if constexpr (S::kInteger) {
    // The norm's weights come before the branch: in it, the compiler would load them after the squares of x.
    const auto beside_x = norm_columns(has_norm && is_vectorized<F>(p, step));
    if (has_norm) {
      squares += squares_of_step(v);
      beside_x.multiply(v);
    }
  } else if (has_norm) {
    add_squares(squares, v);
    norm_columns(is_vectorized<F>(p, step)).multiply(v);
  }
  if constexpr (S::kInteger) {
    Activations<F> a;
    *scale = quantize<F>(a, v);
    return a;
  } else return words_of<F>(v);
}

template <WeightFormat F>
__device__ __forceinline__ Activations<F> read_activations(
    float& squares, const Gemm& p, int row, int step, RowScale* scale = nullptr) {
  float v[Step<F>::kLaneColumns];
  load_activations<F>(v, p, row, step);
  return round_activations<F>(squares, v, p, row, step, scale);
}

// Sums the squares of the lane's share of row `row` of x over the warp's steps; 0 without a norm. The order of
// additions is that of gemm_kernel without packed activations, so the bits are equal.
template <WeightFormat F>
__device__ __forceinline__ float sum_squares(const Gemm& p, int row, int steps) {
  using S = Step<F>;
  float squares = 0;
  if (!p.norm.text_weight) return squares;
  const int k = static_cast<int>(p.weight.k);
  constexpr int kInFlight = 32 / S::kLaneColumns > 1 ? 32 / S::kLaneColumns : 1;  // steps
  for (int first = warp_index(); first < steps; first += kInFlight * kWarps) {
    float v[kInFlight][S::kLaneColumns];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {  // zeros from the last step on
      const int column = (first + i * kWarps) * S::kColumns + lane_in_group() * S::kLaneColumns;
      load_row(v[i], p.x + static_cast<int64_t>(row) * k, column, k, is_vectorized<F>(p, first + i * kWarps));
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if constexpr (S::kInteger) {
        if (first + i * kWarps >= steps) break;
        squares += group_sum(squares_of_step(v[i]));
      } else add_squares(squares, v[i]);
    }
  }
  return squares;
}

// RMSNorm's factor of the lane's row of x, group_lane(), from the warps' sums of squares; 1 without a norm. `shared`:
// memory for the sums.
template <WeightFormat F>
__device__ __forceinline__ float norm_factor(float squares, float (*shared)[kRowTile], const Gemm& p) {
  if constexpr (!Step<F>::kInteger) squares = group_sum(squares);  // of integers it is that of the row's four lanes
  if (lane_in_group() == 0) shared[warp_index()][group_lane()] = squares;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp][group_lane()];
  return p.norm.text_weight ? 1 / sqrtf(sum / static_cast<float>(p.weight.k) + p.norm.eps) : 1.f;
}

// Packs x. Blocks (x, y) pack tile x of 8 rows, and share out its K-steps. The last one along y sums the squares of the
// norm instead. `steps`: K-steps of the weight. `is_first`: whether this is the first launch of the operator.
template <WeightFormat F, bool kForWarpgroups>
__global__ void __launch_bounds__(kThreads)
    pack_activations_kernel(Gemm p, PackedActivations to, int steps, bool is_first) {
  using S = Step<F>;
  __shared__ float shared[kWarps][kRowTile];
  // gemm_kernel may read weights before it waits, so whatever wrote them must be complete before it is launched.
  if (is_first) wait_for_earlier_launches();
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t tile = blockIdx.x;
  const int row = min(static_cast<int>(tile) * kRowTile + group_lane(), p.rows - 1);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int shares = static_cast<int>(gridDim.y) - 1, share = static_cast<int>(blockIdx.y);
  for (int step = share * kWarps + warp_index(); share < shares && step < steps; step += shares * kWarps) {
    float squares = 0;  // of this step alone
    RowScale scale;
    const Activations<F> a = read_activations<F>(squares, p, row, step, &scale);
    if constexpr (kForWarpgroups) {
      to.write(a, static_cast<int>(tile), step, steps);
    } else {
      auto* fours = reinterpret_cast<uint4*>(to.words + (tile * steps + step) * S::kWords * kWarp) + lane;
#pragma unroll
      for (int i = 0; i < S::kWords / 4; ++i) {
        fours[i * kWarp] = make_uint4(a.words[4 * i], a.words[4 * i + 1], a.words[4 * i + 2], a.words[4 * i + 3]);
      }
    }
    if (S::kInteger && lane_in_group() == 0) {
      const int64_t at = (tile * steps + step) * kRowTile + group_lane();
      to.scales[at] = scale.scale;
      if constexpr (F == WeightFormat::int4) to.zero_corrections[at] = scale.zero_correction;
    }
  }
  if (share < shares) return;
  const float squares = sum_squares<F>(p, row, steps);
  const float factor = norm_factor<F>(squares, shared, p);
  if (warp_index() == 0 && lane_in_group() == 0) to.norm_factors[tile * kRowTile + group_lane()] = factor;
}

}  // namespace

}  // namespace higgs_native::cuda
