// AMX: one instruction multiplies two tiles, 16 rows of 64 bytes each, and adds the products to a third. Its unit is as
// wide as 16 (bytes) to 32 (bfloat16) vectors of AVX-512.
#pragma once

#include "cpu/simd/avx512_bf16.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

inline constexpr bool kHasByteTiles = true;
inline constexpr bool kHasPairTiles = true;

// While it lives, vectors take subnormal numbers for zero, and make none, as tiles do.
class FlushSubnormals {
 public:
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  unsigned before_;
};

// The eight tiles, in fixed roles. Intrinsics take tile numbers as literals alone.
//   0-3  sums: of one or two groups of rows, times the two halves of one or two panels
//   4-5  activations of a group, a row each
//   6-7  weights of the halves of a panel: a row holds 4 bytes of 16 weight rows
struct Tiles {
  using Flush = FlushSubnormals;
  static constexpr bool kRowsInPairs = false;

  Tiles(int64_t, int64_t) {}

  // Sets the tiles' shapes for groups of `rows0` and `rows1` rows, at most 16. Their contents are lost.
  HIGGS_INLINE void configure(int64_t rows0, int64_t rows1) {
    struct alignas(64) {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } shapes = {};
    shapes.palette = 1;
    const int64_t rows[8] = {rows0, rows0, rows1, rows1, rows0, rows1, 16, 16};
    for (int i = 0; i < 8; ++i) {
      shapes.row_bytes[i] = 64;
      shapes.rows[i] = static_cast<uint8_t>(rows[i]);
    }
    _tile_loadconfig(&shapes);
  }

  // Saving and restoring a thread is slower while its tiles are in use.
  HIGGS_INLINE void release() { _tile_release(); }

  HIGGS_INLINE void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }

  // Sums [rows, panels * 32], 4 bytes each; those of the second group follow the first group's.
  template <int kGroups, int kPanels>
  HIGGS_INLINE void load_sums(const void* sums, int64_t rows0) {
    const char* p = static_cast<const char*>(sums);
    _tile_loadd(0, p, kPanels * 128);
    _tile_loadd(1, p + 64, kPanels * 128);
    if constexpr (kGroups * kPanels > 1) {
      const char* q = p + (kPanels > 1 ? 128 : rows0 * 128);
      _tile_loadd(2, q, kPanels * 128);
      _tile_loadd(3, q + 64, kPanels * 128);
    }
  }

  template <int kGroups, int kPanels>
  HIGGS_INLINE void store_sums(void* sums, int64_t rows0) {
    char* p = static_cast<char*>(sums);
    _tile_stored(0, p, kPanels * 128);
    _tile_stored(1, p + 64, kPanels * 128);
    if constexpr (kGroups * kPanels > 1) {
      char* q = p + (kPanels > 1 ? 128 : rows0 * 128);
      _tile_stored(2, q, kPanels * 128);
      _tile_stored(3, q + 64, kPanels * 128);
    }
  }

  // Multiplies rows of 64 bytes of x by 16 rows of 128 bytes of weights: signed bytes, or pairs of bfloat16. x1 is the
  // second group, weights1 the second panel.
  template <bool kIntegers, int kGroups, int kPanels>
  HIGGS_INLINE void multiply(const char* x, const char* x1, const char* weights, const char* weights1) {
#define HIGGS_NATIVE_MULTIPLY(sums, rows, weights)            \
  if constexpr (kIntegers) _tile_dpbssd(sums, rows, weights); \
  else _tile_dpbf16ps(sums, rows, weights)
    _tile_loadd(4, x, 64);
    _tile_loadd(6, weights, 128);
    HIGGS_NATIVE_MULTIPLY(0, 4, 6);
    _tile_loadd(7, weights + 64, 128);
    HIGGS_NATIVE_MULTIPLY(1, 4, 7);
    if constexpr (kGroups > 1) {
      _tile_loadd(5, x1, 64);
      HIGGS_NATIVE_MULTIPLY(2, 5, 6);
      HIGGS_NATIVE_MULTIPLY(3, 5, 7);
    }
    if constexpr (kPanels > 1) {
      _tile_loadd(6, weights1, 128);
      HIGGS_NATIVE_MULTIPLY(2, 4, 6);
      _tile_loadd(7, weights1 + 64, 128);
      HIGGS_NATIVE_MULTIPLY(3, 4, 7);
    }
#undef HIGGS_NATIVE_MULTIPLY
  }
};

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
