// Adapters (LoRA): a row x with adapter i adds B_i (A_i x) to the sums of a GEMM, before its epilogue. The index of a
// row's adapter is read on the device; the bits of its sums depend on the row and the adapter alone.
// Bytes moved: the factors of its adapter for each row; further rows of the same adapter find them in L2.
#pragma once

#include "cuda/linear/epilogues.h"

namespace higgs_native::cuda {

namespace {

// The packed factors of each adapter; null if it adds nothing to this GEMM. Units are per panel.
struct Factors {
  const char *a[kMaxAdapters], *b[kMaxAdapters];
  int a_units[kMaxAdapters], b_units[kMaxAdapters];
};

struct LowRankRows {
  const float* x;           // [rows, k]
  const int32_t* adapters;  // [rows], -1 for none
  float* sums;              // A @ x, [rows, sums_stride]
  float* added;             // B @ sums, [rows, panels * kPanel]
  RowNorm norm;             // before A
  int k, panels, sums_stride;
};

// The lane's word of a unit times the values of its columns: `first`, and `second` if T, the type of the factors, has
// 16 bits.
template <typename T>
__device__ __forceinline__ float multiply_word(const char* unit, float first, float second) {
  uint32_t word;
  memcpy(&word, unit + static_cast<int>(threadIdx.x) % kWarp * 4, sizeof word);
  if constexpr (sizeof(T) == 4) return bits_as_float(word) * first;
  else {
    const float2 pair = unpack<T>(word);
    return pair.x * first + pair.y * second;
  }
}

// sums = A @ norm(x): a block takes a row of x and a panel of A; its warps share the units.
template <typename T>
__global__ void __launch_bounds__(kThreads) multiply_a_kernel(LowRankRows p, Factors factors) {
  constexpr int kColumns = 4 / sizeof(T);  // of a word
  __shared__ float partial_sums[kWarps][kWarp];
  __shared__ float partial_squares[kWarps];
  // The first launch of an operator lets others start only after its wait: see cuda/device.h.
  wait_for_earlier_launches();
  allow_next_launch();
  const int row = static_cast<int>(blockIdx.x), panel = static_cast<int>(blockIdx.y);
  const int adapter = p.adapters[row], warp = warp_index(), lane = static_cast<int>(threadIdx.x) % kWarp;
  // The grid has the panels of the highest rank. B has as many columns as this adapter's A has rows.
  if (adapter < 0 || !factors.a[adapter] || panel * kWarp >= factors.b_units[adapter] * kColumns) return;
  const float* x = p.x + static_cast<int64_t>(row) * p.k;
  const void* norm = row < p.norm.num_text_rows ? p.norm.text_weight : p.norm.audio_weight;
  const int units = factors.a_units[adapter];
  const char* a = factors.a[adapter] + static_cast<int64_t>(panel) * units * kUnitBytes;
  auto input = [&](int column) {
    if (column >= p.k) return 0.f;
    return norm ? x[column] * norm_weight(norm, p.norm.type, column) : x[column];
  };
  float sum = 0, squares = 0;
  for (int unit = warp; unit < units; unit += kWarps) {
    const float second = kColumns == 2 ? input(kColumns * unit + 1) : 0.f;
    sum += multiply_word<T>(a + static_cast<int64_t>(unit) * kUnitBytes, input(kColumns * unit), second);
  }
  if (norm) {
    for (int i = static_cast<int>(threadIdx.x); i < p.k; i += kThreads) squares += x[i] * x[i];
  }
  squares = warp_sum(squares);
  partial_sums[warp][lane] = sum;
  if (lane == 0) partial_squares[warp] = squares;
  __syncthreads();
  if (warp > 0) return;
  sum = squares = 0;
  for (int i = 0; i < kWarps; ++i) {
    sum += partial_sums[i][lane];
    squares += partial_squares[i];
  }
  if (norm) sum /= sqrtf(squares / static_cast<float>(p.k) + p.norm.eps);
  p.sums[static_cast<int64_t>(row) * p.sums_stride + panel * kWarp + lane] = sum;
}

// added = B @ sums, and zeros for rows without an adapter: a warp takes a row of x and a panel of B.
template <typename T>
__global__ void __launch_bounds__(kThreads) multiply_b_kernel(LowRankRows p, Factors factors) {
  constexpr int kColumns = 4 / sizeof(T);
  allow_next_launch();
  wait_for_earlier_launches();
  const int row = static_cast<int>(blockIdx.x), panel = static_cast<int>(blockIdx.y) * kWarps + warp_index();
  const int adapter = p.adapters[row], lane = static_cast<int>(threadIdx.x) % kWarp;
  if (panel >= p.panels) return;
  float sum = 0;
  if (adapter >= 0 && factors.b[adapter]) {
    const float* sums = p.sums + static_cast<int64_t>(row) * p.sums_stride;
    const char* b = factors.b[adapter] + static_cast<int64_t>(panel) * factors.b_units[adapter] * kUnitBytes;
    for (int unit = 0; unit < factors.b_units[adapter]; ++unit, sums += kColumns, b += kUnitBytes) {
      sum += multiply_word<T>(b, sums[0], kColumns == 2 ? sums[1] : 0.f);
    }
  }
  p.added[(static_cast<int64_t>(row) * p.panels + panel) * kPanel + lane] = sum;
}

template <typename T>
void launch_low_rank(const Launch& launch, const LowRankRows& p, const Factors& factors, int64_t rows) {
  const dim3 a_grid(static_cast<unsigned>(rows), static_cast<unsigned>(p.sums_stride / kPanel));
  launch(multiply_a_kernel<T>, a_grid, kThreads, 0, p, factors);
  const dim3 b_grid(static_cast<unsigned>(rows), static_cast<unsigned>(ceil_div(p.panels, kWarps)));
  launch(multiply_b_kernel<T>, b_grid, kThreads, 0, p, factors);
}

}  // namespace

}  // namespace higgs_native::cuda
