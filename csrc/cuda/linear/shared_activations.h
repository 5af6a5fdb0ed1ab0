// The activations of a GEMM with few rows and integer weights, which a block keeps in shared memory.
#pragma once

#include "cuda/linear/activations.h"

namespace higgs_native::cuda {

namespace {

// Up to kRowTile rows of x in shared memory, rounded to integers. If each warp rounded its own steps, lanes without a
// row of x would idle; here all lanes of the block share the rounding.
template <WeightFormat F>
struct SharedActivations {
  using S = Step<F>;
  static constexpr int kRowWords = S::kWords;  // 16 bytes each, of the four lanes of a row: 4 lanes * kWords / 4
  uint4* words;                                // [steps, rows, 4 lanes, kWords / 4]
  ColumnScales* scales;                        // [steps, pairs of rows]
  uint4* zeros;                                // [kWords / 4]
  float* squares;                              // [steps, rows], of x before the norm
  int rows, steps;

  static __host__ __device__ __forceinline__ int pairs(int rows) { return (rows + 1) / 2; }

  static size_t bytes(int steps, int rows) {
    return (sizeof(uint4) * kRowWords * rows + sizeof(ColumnScales) * pairs(rows)) * steps +
           S::kWords * sizeof(uint32_t) + sizeof(float) * steps * rows;
  }

  __device__ __forceinline__ SharedActivations(char* memory, int num_steps, int num_rows)
      : words(reinterpret_cast<uint4*>(memory)),
        scales(reinterpret_cast<ColumnScales*>(words + num_steps * num_rows * kRowWords)),
        zeros(reinterpret_cast<uint4*>(scales + num_steps * pairs(num_rows))),
        squares(reinterpret_cast<float*>(zeros + S::kWords / 4)),
        rows(num_rows),
        steps(num_steps) {}

  // Rounds all rows of all steps; four lanes share a row of a step. A barrier must follow.
  __device__ __forceinline__ void fill(const Gemm& p) const {
    const int count = steps * rows;
    if (threadIdx.x < S::kWords / 4) zeros[threadIdx.x] = make_uint4(0, 0, 0, 0);
    for (int first = warp_index() * kRowTile; first < count; first += kWarps * kRowTile) {
      const int at = min(first + group_lane(), count - 1);
      const int step = static_cast<int>(static_cast<uint32_t>(at) * p.inverse_of_rows >> 16), row = at - step * rows;
      float of_step = 0;
      RowScale scale;
      const Activations<F> a = read_activations<F>(of_step, p, row, step, &scale);
      of_step = group_sum(of_step);
      if (first + group_lane() >= count) continue;
      uint4* to = words + at * kRowWords + lane_in_group() * (S::kWords / 4);
#pragma unroll
      for (int i = 0; i < S::kWords / 4; ++i) {
        to[i] = make_uint4(a.words[4 * i], a.words[4 * i + 1], a.words[4 * i + 2], a.words[4 * i + 3]);
      }
      if (lane_in_group() > 0) continue;
      squares[at] = of_step;
      ColumnScales& pair = scales[step * pairs(rows) + row / 2];
      pair.scales[row % 2] = scale.scale;
      pair.zero_corrections[row % 2] = scale.zero_correction;
      if (row % 2 == 0 && row == rows - 1) {
        pair.scales[1] = 0;
        pair.zero_corrections[1] = 0;
      }
    }
  }

  // The lane's share in a step.
  __device__ __forceinline__ Activations<F> read(int step) const { return read_words(row_words(step, group_lane())); }

  // The same of half a tile, which stands in columns 4 * half .. 4 * half + 3. The other columns are zeros.
  __device__ __forceinline__ Activations<F> read_half(int step, int half) const {
    return read_words(group_lane() / 4 == half ? row_words(step, group_lane() % 4) : zeros);
  }

  // `pair`: of rows.
  __device__ __forceinline__ ColumnScales columns(int step, int pair) const {
    return scales[step * pairs(rows) + min(pair, pairs(rows) - 1)];
  }

  // The sum of the squares of the lane's row over the warp's steps.
  __device__ __forceinline__ float sum_squares() const {
    float sum = 0;
    for (int step = warp_index(); step < steps; step += kWarps) {
      sum += squares[step * rows + min(group_lane(), rows - 1)];
    }
    return sum;
  }

  __device__ __forceinline__ const uint4* row_words(int step, int row) const {
    return words + (step * rows + min(row, rows - 1)) * kRowWords + lane_in_group() * (S::kWords / 4);
  }

  static __device__ __forceinline__ Activations<F> read_words(const uint4* from) {
    Activations<F> x;
#pragma unroll
    for (int i = 0; i < S::kWords / 4; ++i) {
      const uint4 four = from[i];
      x.words[4 * i] = four.x;
      x.words[4 * i + 1] = four.y;
      x.words[4 * i + 2] = four.z;
      x.words[4 * i + 3] = four.w;
    }
    return x;
  }
};

}  // namespace

}  // namespace higgs_native::cuda
