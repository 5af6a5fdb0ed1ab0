// The residual vector quantizer of the audio tokenizer, in float32.
#pragma once

#include "args/audio_tokenizer.h"
#include "cuda/launch.h"

namespace higgs_native::cuda {

namespace {

constexpr int kEncodeThreads = 512, kEncodeWarps = kEncodeThreads / kWarp;
constexpr int kFrames = 4;  // frames per block: weights are read once for all of them

// sums[f] = the sum over j of row[j] * columns[f][j], for the warp.
__device__ __forceinline__ void multiply_frames(
    float (&sums)[kFrames], const float* row, const float* const (&columns)[kFrames], int64_t size) {
#pragma unroll
  for (int f = 0; f < kFrames; ++f) sums[f] = 0;
#pragma unroll 2
  for (int64_t j = threadIdx.x % kWarp; j < size; j += kWarp) {
    const float value = row[j];
#pragma unroll
    for (int f = 0; f < kFrames; ++f) sums[f] = fmaf(value, columns[f][j], sums[f]);
  }
#pragma unroll
  for (int f = 0; f < kFrames; ++f) sums[f] = warp_sum(sums[f]);
}

// A block takes kFrames frames through all levels; a warp takes every 16th row of a matrix or entry of a codebook.
__global__ void __launch_bounds__(kEncodeThreads) rvq_encode_kernel(RvqEncode args) {
  allow_next_launch();
  wait_for_earlier_launches();
  __shared__ float distances[kEncodeWarps][kFrames];
  __shared__ int32_t nearest[kEncodeWarps][kFrames];
  const int warp = threadIdx.x / kWarp;
  const bool leads = threadIdx.x % kWarp == 0;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kFrames, dim = args.dim, width = args.width;
  float* residual = reinterpret_cast<float*>(dynamic_shared());
  float* projected = residual + kFrames * width;
  const float *residuals[kFrames], *projections[kFrames], *chosen[kFrames];
#pragma unroll
  for (int f = 0; f < kFrames; ++f) {
    residuals[f] = residual + f * width;
    projections[f] = projected + f * dim;
  }
  const int64_t values = min(args.frames - first, int64_t{kFrames}) * width;
  for (int64_t i = threadIdx.x; i < kFrames * width; i += kEncodeThreads) {
    residual[i] = i < values ? args.embeddings[first * width + i] : 0;
  }
  __syncthreads();

  float sums[kFrames];
  for (int64_t level = 0; level < args.levels; ++level) {
    for (int64_t d = warp; d < dim; d += kEncodeWarps) {
      multiply_frames(sums, args.in_weight + (level * dim + d) * width, residuals, width);
#pragma unroll
      for (int f = 0; f < kFrames; ++f) {
        if (leads) projected[f * dim + d] = sums[f] + args.in_bias[level * dim + d];
      }
    }
    __syncthreads();

    float squares[kFrames] = {}, best[kFrames];
    int32_t best_entry[kFrames] = {};
    for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp) {
#pragma unroll
      for (int f = 0; f < kFrames; ++f) squares[f] = fmaf(projections[f][d], projections[f][d], squares[f]);
    }
#pragma unroll
    for (int f = 0; f < kFrames; ++f) {
      squares[f] = warp_sum(squares[f]);
      best[f] = INFINITY;
    }
    const float* book = args.codebooks + level * args.entries * dim;
#pragma unroll 1
    for (int64_t entry = warp; entry < args.entries; entry += kEncodeWarps) {
      multiply_frames(sums, book + entry * dim, projections, dim);
      float norm = 0;
      for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp)
        norm = fmaf(book[entry * dim + d], book[entry * dim + d], norm);
      norm = warp_sum(norm);
#pragma unroll
      for (int f = 0; f < kFrames; ++f) {
        const float distance = fmaf(-2.f, sums[f], squares[f]) + norm;
        if (distance < best[f]) {
          best[f] = distance;
          best_entry[f] = static_cast<int32_t>(entry);
        }
      }
    }
#pragma unroll
    for (int f = 0; f < kFrames; ++f) {
      if (leads) {
        distances[warp][f] = best[f];
        nearest[warp][f] = best_entry[f];
      }
    }
    __syncthreads();

    // The nearest of all warps' entries, the first of equal ones; every thread finds it.
#pragma unroll
    for (int f = 0; f < kFrames; ++f) {
      float distance = distances[0][f];
      int32_t code = nearest[0][f];
      for (int w = 1; w < kEncodeWarps; ++w) {
        if (distances[w][f] < distance || (distances[w][f] == distance && nearest[w][f] < code)) {
          distance = distances[w][f];
          code = nearest[w][f];
        }
      }
      chosen[f] = book + code * dim;
      if (threadIdx.x == 0 && first + f < args.frames) args.codes[level * args.frames + first + f] = code;
    }
    for (int64_t i = warp; i < width; i += kEncodeWarps) {
      multiply_frames(sums, args.out_weight + (level * width + i) * dim, chosen, dim);
#pragma unroll
      for (int f = 0; f < kFrames; ++f) {
        if (leads) residual[f * width + i] -= sums[f] + args.out_bias[level * width + i];
      }
    }
    __syncthreads();
  }
}

constexpr int kDecodeThreads = 128;

// The host does not read the codes: a frame with a code outside the table is NaN.
__global__ void __launch_bounds__(kDecodeThreads) rvq_decode_kernel(RvqDecode args) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t t = blockIdx.x, i = static_cast<int64_t>(blockIdx.y) * kDecodeThreads + threadIdx.x;
  if (i >= args.width) return;
  bool found = true;
  for (int64_t level = 0; level < args.levels; ++level) {
    const int32_t code = args.codes[level * args.frames + t];
    found &= code >= 0 && code < args.entries;
  }
  float sum = found ? args.bias[i] : NAN;
  // No condition inside the loop, so that the loads of all rows are in flight at once.
  const int64_t levels = found ? args.levels : 0;
#pragma unroll 4
  for (int64_t level = 0; level < levels; ++level) {
    sum += args.table[(level * args.entries + args.codes[level * args.frames + t]) * args.width + i];
  }
  args.out[t * args.width + i] = sum;
}

}  // namespace

}  // namespace higgs_native::cuda
