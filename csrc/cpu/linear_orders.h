// The orders of the packed activations of a group of `rows` rows, for linear_formats.h. write() writes `count` words of
// row m, 4 bytes each, from word `first` on.
#pragma once

#include "cpu/simd/simd.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

namespace {

// 4 bytes of each row in turn.
struct Interleaved {
  HIGGS_INLINE void write(char* to, int64_t rows, int64_t m, int64_t first, const void* words, int64_t count) {
    const char* from = static_cast<const char*>(words);
    if (rows == 1) {
      memcpy(to + first * 4, from, count * 4);
      return;
    }
    for (int64_t i = 0; i < count; ++i) memcpy(to + ((first + i) * rows + m) * 4, from + i * 4, 4);
  }
};

// kTileBytes of each row in turn: tile after tile. One row has the same order as above.
constexpr int64_t kTileBytes = 64;

struct TileMajor {
  HIGGS_INLINE void write(char* to, int64_t rows, int64_t m, int64_t first, const void* words, int64_t count) {
    constexpr int64_t kWords = kTileBytes / 4, kHalf = kWords / 2;
    const char* from = static_cast<const char*>(words);
    const auto at = [&](int64_t word) { return to + (word / kWords * rows + m) * kTileBytes + word % kWords * 4; };
    int64_t i = 0;
    if (first % kHalf == 0) {  // halves of tiles, by copies of a size that the compiler knows
      for (; i + kHalf <= count; i += kHalf) memcpy(at(first + i), from + i * 4, kHalf * 4);
    }
    for (; i < count; ++i) memcpy(at(first + i), from + i * 4, 4);
  }
};

// Tile after tile, with rows in pairs: 8 bytes of each of the two in turn. A last row without another has the same order
// as above. Words come by twos.
struct PairedTileMajor {
  HIGGS_INLINE void write(char* to, int64_t rows, int64_t m, int64_t first, const void* words, int64_t count) {
    constexpr int64_t kWords = kTileBytes / 4;
    const char* from = static_cast<const char*>(words);
    const int64_t in_pair = m % 2 * 8, step = m % 2 == 1 || m + 1 < rows ? 16 : 8;
    for (int64_t word = first; word < first + count; word += 2, from += 8) {
      memcpy(to + (word / kWords * rows + m / 2 * 2) * kTileBytes + word % kWords / 2 * step + in_pair, from, 8);
    }
  }
};

template <bool kRowsInPairs>
struct TileOrder {
  using Type = TileMajor;
};
template <>
struct TileOrder<true> {
  using Type = PairedTileMajor;
};

}  // namespace

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
