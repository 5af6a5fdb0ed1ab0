// Products by tiles, for linear_kernels.cpp: 32 rows of x times one panel of the weight, or 16 rows times two panels.
// Their sums stay in tiles while the panels' units stream by. A tile of weights is 16 units as they are stored, or as
// many as expand to 16.
//
// One row is left to vectors, which read more panels at a time. They give the same bits: sums of integers are exact, and
// products of bfloat16 are added in the order of tiles.
#pragma once

#include "cpu/linear_formats.h"
#include "cpu/linear_kernels.h"
#include "cpu/linear_vectors.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

namespace {

constexpr int64_t kTileRows = 16;  // of activations at most, and of weights
constexpr int64_t kPanelTile = kTileRows * kUnitBytes;
constexpr int64_t kBlockGroups = 16;   // whose sums stay in the cache
constexpr int64_t kBlockPanels = 4;    // that a group takes while its activations are in the cache
constexpr int64_t kBlockTiles = 16;    // of a panel, that stay in the cache for the groups of a block
constexpr int64_t kCopiedTiles = 2;    // for one group
constexpr int64_t kBytesAhead = 2048;  // of a panel: how far ahead it is fetched

// Units of weights in a tile.
template <typename F>
constexpr int64_t kTileUnits = kTileBytes / F::kPackedUnitBytes;

// Whether units are multiplied as they are stored, not expanded.
template <typename F>
constexpr bool kStored = kTileUnits<F> == kTileRows;

// Prefetches kBytes.
template <int64_t kBytes>
HIGGS_INLINE void fetch(const char* from) {
#pragma GCC unroll 32
  for (int64_t at = 0; at < kBytes; at += 64) __builtin_prefetch(from + at);
}

// ---- One row of bfloat16

// Adds the products of a row and kPanels neighboring panels, in the order of tiles: within a tile, those of the first
// and of the second of each pair of weights apart. Not inlined: within the caller, operations could leave its Flush.
template <typename F, int kPanels>
__attribute__((noinline)) void add_row(float* sums, const char* x, const char* weight, int64_t units) {
  constexpr int J = kPanels * kParts;
  Vec total[J] = {};
  Unit unit = {weight, units * kUnitBytes};
  for (int64_t begin = 0; begin < units; begin += kTileUnits<F>) {
    Vec first[J] = {}, second[J] = {};
    const int64_t count = units - begin < kTileUnits<F> ? units - begin : kTileUnits<F>;
#pragma GCC unroll 4
    for (int64_t u = 0; u < count; ++u) {
      F::step_in_tile(first, second, x, unit);
      x += F::kPackedUnitBytes;
      unit.weight += kUnitBytes;
    }
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) total[j] += first[j] + second[j];
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) store(sums + j * kWidth, total[j]);
}

template <typename T, typename F>
void gemm_row(const GemmBlock& p) {
  const int64_t scale_bytes = panel_scale_bytes(F::kFormat, p.units);
  for (int64_t n0 = 0; n0 < p.n;) {
    alignas(64) float sums[kPanelsOfRow * kPanel];
    const int64_t panel = n0 / kPanel;
    const char* weight = p.weight + panel * p.units * kUnitBytes;
    const char* scales = static_cast<const char*>(p.scales) + panel * scale_bytes;
    const int64_t panels = n0 + (kPanelsOfRow - 1) * kPanel < p.n ? kPanelsOfRow : 1;
    {
      typename T::Flush flush;
      if (panels == 1) add_row<F, 1>(sums, p.x, weight, p.units);
      else add_row<F, kPanelsOfRow>(sums, p.x, weight, p.units);
    }
    for (int64_t i = 0; i < panels; ++i) {
      write_row<F>(p, sums + i * kPanel, scales + i * scale_bytes, 0, n0 + i * kPanel);
    }
    n0 += panels * kPanel;
  }
}

// ---- More rows

// The tiles of one or two groups of rows and one or two panels, from tile `begin` of `tiles` on.
struct TileBlock {
  float* sums;            // [rows0 + rows1, panels * kPanel]: of the tiles before `begin`, integers' zeros at first
  const char* x[2];       // packed activations of each group
  const char* weight[2];  // tiles of each panel
  const char* scales[2];  // of each panel
  int64_t rows0, rows1;
  int64_t begin, end, tiles;
};

template <typename T, typename F, int kGroups, int kPanels>
void run_tiles(const TileBlock& b) {
  const int64_t x_bytes[2] = {b.rows0 * kTileBytes, b.rows1 * kTileBytes};
  const char* x[2] = {b.x[0] + b.begin * x_bytes[0], b.x[1] + b.begin * x_bytes[1]};
  const char* weight[2] = {b.weight[0], b.weight[1]};
  const auto multiply = [&] {
    if constexpr (kGroups == 1 && kStored<F>) {
      for (int i = 0; i < kPanels; ++i) fetch<kPanelTile>(weight[i] + kBytesAhead);
    }
    T::template multiply<is_integer(F::kFormat), kGroups, kPanels>(x[0], x[1], weight[0], weight[1]);
    for (int i = 0; i < 2; ++i) {
      x[i] += x_bytes[i];
      weight[i] += kPanelTile;
    }
  };
  if constexpr (!is_integer(F::kFormat)) {
    if (b.begin == 0) T::zero_sums();
    else T::template load_sums<kGroups, kPanels>(b.sums, b.rows0);
    for (int64_t t = b.begin; t < b.end; ++t) multiply();
    T::template store_sums<kGroups, kPanels>(b.sums, b.rows0);
  } else {
    constexpr int64_t kGroupTiles = kQuantGroup / kTileBytes;
    constexpr int J = kPanels * kParts;
    alignas(64) int32_t integers[kGroups * kTileRows * kPanels * kPanel];
    const int64_t rows = b.rows0 + (kGroups > 1 ? b.rows1 : 0);
    for (int64_t g = b.begin / kGroupTiles; g < b.end / kGroupTiles; ++g) {
      T::zero_sums();
      for (int64_t t = 0; t < kGroupTiles; ++t) multiply();
      T::template store_sums<kGroups, kPanels>(integers, b.rows0);
      Vec panel_scales[J];
      for (int j = 0; j < J; ++j) panel_scales[j] = F::group_scale(b.scales[j / kParts], g, j % kParts);
      for (int64_t m = 0; m < rows; ++m) {
        const int group = m < b.rows0 ? 0 : 1;
        const int64_t row = group ? m - b.rows0 : m, count = group ? b.rows1 : b.rows0;
        const float* scales = reinterpret_cast<const float*>(b.x[group] + b.tiles * x_bytes[group]);
        const Vec row_scale = splat(scales[g * count + row]);
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) {
          float* sum = b.sums + (m * J + j) * kWidth;
          IntVec products;
          memcpy(&products, integers + (m * J + j) * kWidth, sizeof products);
          store(sum, load(sum) + __builtin_convertvector(products, Vec) * (row_scale * panel_scales[j]));
        }
      }
    }
  }
}

// Writes tiles [begin, end) of a panel of `units` units to `to`, expanded, and zeros beyond its last unit.
template <typename F>
HIGGS_INLINE void copy_tiles(char* to, const char* panel, int64_t begin, int64_t end, int64_t units) {
  constexpr int64_t kUnits = kTileUnits<F>, kExpanded = kPanelTile / kUnits;
  for (int64_t u = begin * kUnits; u < end * kUnits; ++u, to += kExpanded) {
    if (u >= units) memset(to, 0, kExpanded);
    else if constexpr (kStored<F>) memcpy(to, panel + u * kUnitBytes, kUnitBytes);
    else {
      fetch<kUnitBytes>(panel + u * kUnitBytes + kBytesAhead);
      F::expand(to, panel + u * kUnitBytes);
    }
  }
}

// A panel's tiles [begin, end): where they are stored, if they can be multiplied so, or else a copy in `memory`.
template <typename F>
HIGGS_INLINE const char* panel_tiles(char* memory, const char* panel, int64_t begin, int64_t end, int64_t units) {
  if (kStored<F> && end * kTileRows <= units) return panel + begin * kPanelTile;
  copy_tiles<F>(memory, panel, begin, end, units);
  return memory;
}

template <typename T, typename F>
void gemm_tiles(const GemmBlock& p) {
  if (p.rows == 1) {
    if constexpr (is_integer(F::kFormat)) return gemm_vectors<F>(p);
    else return gemm_row<T, F>(p);
  }
  constexpr int64_t kSums = kBlockGroups * kTileRows * kPanel;
  alignas(64) float sums[kBlockPanels][kSums];
  alignas(64) char copies[kBlockPanels][kBlockTiles * kPanelTile];
  const int64_t tiles = (p.units + kTileUnits<F> - 1) / kTileUnits<F>;
  int64_t row_bytes = tiles * kTileBytes;
  if constexpr (is_integer(F::kFormat)) row_bytes += p.units / F::kGroupUnits * 8;
  const int64_t scale_bytes = panel_scale_bytes(F::kFormat, p.units);
  const int64_t groups = group_count(p.rows, kTileRows);
  // One group takes all whole tiles of two panels, if they can be multiplied as they are stored. More groups take
  // blocks of tiles in turn, each group those of several panels while its activations are in the cache.
  const int64_t stored_tiles = kStored<F> ? p.units / kTileRows : 0;
  const int64_t block_tiles = groups > 1 ? kBlockTiles : kStored<F> ? tiles : kCopiedTiles;
  int64_t configured[2] = {0, 0};
  for (int64_t n0 = 0; n0 < p.n;) {
    const int64_t left = (p.n - n0 + kPanel - 1) / kPanel, most = groups > 1 ? kBlockPanels : 2;
    const int64_t panels = left < most ? left : most;
    const int64_t width = groups > 1 ? 1 : panels;  // panels whose sums are in tiles at a time
    const char *weight[kBlockPanels], *scales[kBlockPanels], *blocks[kBlockPanels];
    for (int64_t i = 0; i < panels; ++i) {
      weight[i] = p.weight + (n0 / kPanel + i) * p.units * kUnitBytes;
      scales[i] = static_cast<const char*>(p.scales) + (n0 / kPanel + i) * scale_bytes;
    }
    for (int64_t g0 = 0; g0 < groups; g0 += kBlockGroups) {
      const int64_t g1 = groups - g0 < kBlockGroups ? groups : g0 + kBlockGroups;
      const int64_t row0 = group_begin(g0, groups, p.rows), row1 = group_begin(g1, groups, p.rows);
      // Integers add to zeros: with a branch for the first group, its addition would not fuse with the product.
      if (tiles == 0 || is_integer(F::kFormat)) {
        for (int64_t i = 0; i < panels; i += width) memset(sums[i], 0, (row1 - row0) * width * kPanel * sizeof(float));
      }
      for (int64_t begin = 0; begin < tiles;) {
        int64_t end = begin + block_tiles < tiles ? begin + block_tiles : tiles;
        if (begin < stored_tiles && stored_tiles < end) end = stored_tiles;
        for (int64_t i = 0; i < panels; ++i) blocks[i] = panel_tiles<F>(copies[i], weight[i], begin, end, p.units);
        for (int64_t g = g0; g < g1; g += 2) {
          const int64_t first = group_begin(g, groups, p.rows), second = group_begin(g + 1, groups, p.rows);
          const bool two = g + 1 < g1;
          const int64_t rows0 = second - first, rows1 = two ? group_begin(g + 2, groups, p.rows) - second : rows0;
          if (configured[0] != rows0 || configured[1] != rows1) T::configure(rows0, rows1);
          configured[0] = rows0;
          configured[1] = rows1;
          const char *x0 = p.x + first * row_bytes, *x1 = two ? p.x + second * row_bytes : x0;
          for (int64_t i = 0; i < panels; i += width) {
            const int64_t last = i + width - 1;
            const TileBlock b = {
                sums[i] + (first - row0) * width * kPanel,
                {x0, x1},
                {blocks[i], blocks[last]},
                {scales[i], scales[last]},
                rows0,
                rows1,
                begin,
                end,
                tiles};
            if (two) run_tiles<T, F, 2, 1>(b);
            else if (width == 2) run_tiles<T, F, 1, 2>(b);
            else run_tiles<T, F, 1, 1>(b);
          }
        }
        begin = end;
      }
      for (int64_t row = row0; row < row1; ++row) {
        for (int64_t i = 0; i < panels; ++i) {
          const float* of_row = sums[i - i % width] + ((row - row0) * width + i % width) * kPanel;
          write_row<F>(p, of_row, scales[i], row, n0 + i * kPanel);
        }
      }
    }
    n0 += panels * kPanel;
  }
  T::release();
}

}  // namespace

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
