// NEON with I8MM: one instruction multiplies two rows of 8 bytes by two others, and adds the products to a 2 by 2 matrix
// of sums. A tile of bytes is many of them.
#pragma once

#include "cpu/simd/neon_bf16.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

inline constexpr bool kHasByteTiles = true;
inline constexpr bool kHasPairTiles = false;  // products of bfloat16 would be rounded in another order than one row's

// Sums of one or two groups of at most 16 rows, times one or two panels of 32 columns. Activations are in the order
// PairedTileMajor.
struct Tiles {
  static constexpr bool kRowsInPairs = true;

  HIGGS_INLINE void configure(int64_t, int64_t) {}
  HIGGS_INLINE void release() {}

  // For groups of `rows0` and `rows1` rows.
  Tiles(int64_t rows0, int64_t rows1) : rows_{rows0, rows1} {}

  inline __attribute__((always_inline)) void zero_sums() {
    for (int i = 0; i < 2; ++i) memset(sums_[i], 0, (rows_[i] + 1) / 2 * sizeof sums_[i][0]);
  }

  // Sums [rows, panels * 32], 4 bytes each; those of the second group follow the first group's.
  template <int kGroups, int kPanels>
  inline __attribute__((always_inline)) void store_sums(void* sums, int64_t rows0) const {
    int32_t* p = static_cast<int32_t*>(sums);
    store_block(p, sums_[0], rows0, kPanels * 32);
    if constexpr (kPanels > 1) store_block(p + 32, sums_[1], rows0, kPanels * 32);
    else if constexpr (kGroups > 1) store_block(p + rows0 * 32, sums_[1], rows_[1], 32);
  }

  // Multiplies rows of 64 signed bytes of x by 16 rows of 128 bytes of weights: 4 bytes of each column. x1 is the second
  // group, weights1 the second panel.
  template <bool, int kGroups, int kPanels>
  inline __attribute__((always_inline)) void multiply(
      const char* x, const char* x1, const char* weights, const char* weights1) {
    multiply_block(sums_[0], x, weights, rows_[0]);
    if constexpr (kGroups > 1) multiply_block(sums_[1], x1, weights, rows_[1]);
    if constexpr (kPanels > 1) multiply_block(sums_[1], x, weights1, rows_[0]);
  }

 private:
  static constexpr int kColumnPairs = 16;
  static constexpr int kPairsAtOnce = 4;  // of rows, times as many of columns: 16 registers of sums

  int64_t rows_[2];
  int32x4_t sums_[2][8][kColumnPairs];  // by pairs of rows and of columns

  HIGGS_INLINE int8x16_t load_bytes(const char* p) { return vld1q_s8(reinterpret_cast<const int8_t*>(p)); }

  HIGGS_INLINE void store_block(int32_t* to, const int32x4_t (*sums)[kColumnPairs], int64_t rows, int64_t stride) {
    for (int64_t row = 0; row < rows; ++row, to += stride) {
      for (int pair = 0; pair < kColumnPairs; pair += 2) {
        const int64x2_t a = (int64x2_t)sums[row / 2][pair], b = (int64x2_t)sums[row / 2][pair + 1];
        vst1q_s32(to + 2 * pair, (int32x4_t)(row % 2 == 0 ? vzip1q_s64(a, b) : vzip2q_s64(a, b)));
      }
    }
  }

  // kRows rows of x times 8 columns, whose weights lie 128 bytes apart.
  template <int kRows>
  static __attribute__((noinline)) void multiply_columns(
      int32x4_t (*to)[kColumnPairs], const char* x, const char* weights) {
    constexpr int kRowPairs = (kRows + 1) / 2;
    int32x4_t sums[kRowPairs][4];
#pragma GCC unroll 4
    for (int p = 0; p < kRowPairs; ++p) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) sums[p][c] = to[p][c];
    }
    for (int step = 0; step < 8; ++step, weights += 256) {
      int8x16_t columns[4];  // 8 bytes of each of two
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const int32x4_t a = (int32x4_t)load_bytes(weights + 16 * i), b = (int32x4_t)load_bytes(weights + 128 + 16 * i);
        columns[2 * i] = (int8x16_t)vzip1q_s32(a, b);
        columns[2 * i + 1] = (int8x16_t)vzip2q_s32(a, b);
      }
#pragma GCC unroll 4
      for (int p = 0; p < kRowPairs; ++p) {
        const char* at = x + 128 * p;
        const bool two = 2 * p + 1 < kRows;
        const int8x16_t rows = two ? load_bytes(at + 16 * step)
                                   : vcombine_s8(vld1_s8(reinterpret_cast<const int8_t*>(at + 8 * step)), vdup_n_s8(0));
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) sums[p][c] = vmmlaq_s32(sums[p][c], rows, columns[c]);
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < kRowPairs; ++p) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) to[p][c] = sums[p][c];
    }
  }

  template <int kRows = 2 * kPairsAtOnce>
  HIGGS_INLINE void multiply_rows(int32x4_t (*sums)[kColumnPairs], const char* x, const char* weights, int64_t rows) {
    if constexpr (kRows > 1) {
      if (rows < kRows) return multiply_rows<kRows - 1>(sums, x, weights, rows);
    }
    for (int c = 0; c < kColumnPairs; c += 4) {
      multiply_columns<kRows>(reinterpret_cast<int32x4_t(*)[kColumnPairs]>(&sums[0][c]), x, weights + 8 * c);
    }
  }

  HIGGS_INLINE void multiply_block(int32x4_t (*sums)[kColumnPairs], const char* x, const char* weights, int64_t rows) {
    for (int64_t row = 0; row < rows; row += 2 * kPairsAtOnce) {
      multiply_rows(sums + row / 2, x + row * 64, weights, rows - row);
    }
  }
};

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
