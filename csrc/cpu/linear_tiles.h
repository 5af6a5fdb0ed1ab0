// Kernels by tiles, for linear_kernels.cpp: 32 rows of x times one panel of the weight, or 16 rows times two panels.
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
constexpr int64_t kBlockPanels = 16;  // max panels that several groups take at a time
constexpr int64_t kBlockGroups = 32;  // max groups that a panel is read for at once
constexpr int64_t kBlockSums = 256;   // max panels times groups, 2 KiB each: half of L2
constexpr int64_t kBlockTiles = 8;    // of a panel, for several groups: a third of L1
constexpr int64_t kCopiedTiles = 2;   // for one group

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
  const char* ahead;  // for two groups: weights that are fetched meanwhile,
  int64_t lines;      // so many lines with each tile
};

template <typename T, typename F, int kGroups, int kPanels>
void run_tiles(const TileBlock& b) {
  const int64_t x_bytes[2] = {b.rows0 * kTileBytes, b.rows1 * kTileBytes};
  const char* x[2] = {b.x[0] + b.begin * x_bytes[0], b.x[1] + b.begin * x_bytes[1]};
  const char* weight[2] = {b.weight[0], b.weight[1]};
  const char* ahead = b.ahead;
  T tiles(b.rows0, b.rows1);
  const auto multiply = [&] {
    if constexpr (kGroups == 2) {
      for (int64_t i = 0; i < b.lines; ++i, ahead += 64) __builtin_prefetch(ahead, 0, 2);
    }
    if constexpr (kGroups == 1 && kStored<F>) {
      for (int i = 0; i < kPanels; ++i) fetch<kPanelTile>(weight[i] + kBytesAhead);
    }
    tiles.template multiply<is_integer(F::kFormat), kGroups, kPanels>(x[0], x[1], weight[0], weight[1]);
    for (int i = 0; i < 2; ++i) {
      x[i] += x_bytes[i];
      weight[i] += kPanelTile;
    }
  };
  if constexpr (!is_integer(F::kFormat)) {
    if (b.begin == 0) tiles.zero_sums();
    else tiles.template load_sums<kGroups, kPanels>(b.sums, b.rows0);
    for (int64_t t = b.begin; t < b.end; ++t) multiply();
    tiles.template store_sums<kGroups, kPanels>(b.sums, b.rows0);
  } else {
    constexpr int64_t kGroupTiles = kQuantGroup / kTileBytes;
    constexpr int J = kPanels * kParts;
    // While tiles multiply a quantization group, vectors scale the products of the one before it.
    alignas(64) int32_t integers[2][kGroups * kTileRows * kPanels * kPanel];
    const auto multiply_group = [&](int64_t g) {
      tiles.zero_sums();
      for (int64_t t = 0; t < kGroupTiles; ++t) multiply();
      tiles.template store_sums<kGroups, kPanels>(integers[g % 2], b.rows0);
    };
    const auto add_rows = [&](int64_t g, int64_t first, int64_t rows, const char* x) {
      Vec panel_scales[J];
      for (int j = 0; j < J; ++j) panel_scales[j] = F::group_scale(b.scales[j / kParts], g, j % kParts);
      const float* scales = reinterpret_cast<const float*>(x + b.tiles * rows * kTileBytes) + g * rows;
      const int32_t* from = integers[g % 2] + first * kPanels * kPanel;
      float* to = b.sums + first * kPanels * kPanel;
#pragma GCC unroll 4
      for (int64_t m = 0; m < rows; ++m, from += J * kWidth, to += J * kWidth) {
        const Vec row_scale = splat(scales[m]);
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) {
          IntVec products;
          memcpy(&products, from + j * kWidth, sizeof products);
          const Vec sum = load(to + j * kWidth);
          store(to + j * kWidth, sum + __builtin_convertvector(products, Vec) * (row_scale * panel_scales[j]));
        }
      }
    };
    const int64_t first = b.begin / kGroupTiles, last = b.end / kGroupTiles;
    multiply_group(first);
    for (int64_t g = first; g < last; ++g) {
      if (g + 1 < last) multiply_group(g + 1);
      add_rows(g, 0, b.rows0, b.x[0]);
      if constexpr (kGroups > 1) add_rows(g, b.rows0, b.rows1, b.x[1]);
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

// A group of rows, with one panel or two neighboring ones.
template <typename T, typename F>
void gemm_group(const GemmBlock& p) {
  alignas(64) float sums[2 * kTileRows * kPanel];
  alignas(64) char copies[2][kCopiedTiles * kPanelTile];
  const int64_t tiles = (p.units + kTileUnits<F> - 1) / kTileUnits<F>;
  const int64_t scale_bytes = panel_scale_bytes(F::kFormat, p.units);
  // Whole tiles that can be multiplied as they are stored are taken at once.
  const int64_t stored_tiles = kStored<F> ? p.units / kTileRows : 0;
  T::configure(p.rows, p.rows);
  for (int64_t n0 = 0; n0 < p.n;) {
    const int64_t panels = p.n - n0 > kPanel ? 2 : 1;
    const char *weight[2], *scales[2];
    for (int64_t i = 0; i < 2; ++i) {
      const int64_t panel = n0 / kPanel + (i < panels ? i : 0);
      weight[i] = p.weight + panel * p.units * kUnitBytes;
      scales[i] = static_cast<const char*>(p.scales) + panel * scale_bytes;
    }
    // Integers add to zeros: with a branch for the first group, its addition would not fuse with the product.
    if (tiles == 0 || is_integer(F::kFormat)) memset(sums, 0, p.rows * panels * kPanel * sizeof(float));
    for (int64_t begin = 0; begin < tiles;) {
      int64_t end = stored_tiles;
      if (begin >= stored_tiles) end = begin + kCopiedTiles < tiles ? begin + kCopiedTiles : tiles;
      TileBlock b = {sums, {p.x, p.x}, {}, {scales[0], scales[1]}, p.rows, p.rows, begin, end, tiles, nullptr, 0};
      for (int64_t i = 0; i < panels; ++i) {
        b.weight[i] = panel_tiles<F>(copies[i], weight[i], begin, end, p.units);
      }
      if (panels == 2) run_tiles<T, F, 1, 2>(b);
      else run_tiles<T, F, 1, 1>(b);
      begin = end;
    }
    for (int64_t row = 0; row < p.rows; ++row) {
      for (int64_t i = 0; i < panels; ++i) {
        write_row<F>(p, sums + (row * panels + i) * kPanel, scales[i], row, n0 + i * kPanel);
      }
    }
    n0 += panels * kPanel;
  }
  T::release();
}

// Several groups of rows, two at a time. A panel's block of tiles stays in L1 while the same tiles of all groups stream
// from L2, which also keeps the sums of all groups and panels. The panel's next block is fetched to L2 meanwhile.
template <typename T, typename F>
__attribute__((noinline)) void gemm_groups(const GemmBlock& p) {
  const int64_t tiles = (p.units + kTileUnits<F> - 1) / kTileUnits<F>;
  int64_t row_bytes = tiles * kTileBytes;
  if constexpr (is_integer(F::kFormat)) row_bytes += p.units / F::kGroupUnits * 8;
  const int64_t scale_bytes = panel_scale_bytes(F::kFormat, p.units), panel_bytes = p.units * kUnitBytes;
  const int64_t stored_tiles = kStored<F> ? p.units / kTileRows : 0;
  constexpr int64_t kStoredTile = kTileUnits<F> * kUnitBytes, kStoredBlock = kBlockTiles * kStoredTile;
  const int64_t all_groups = group_count(p.rows, kTileRows), all_panels = (p.n + kPanel - 1) / kPanel;
  const int64_t blocks = (all_groups + kBlockGroups - 1) / kBlockGroups;
  const int64_t most_groups = (all_groups + blocks - 1) / blocks;
  const int64_t most_panels = kBlockSums / most_groups < kBlockPanels ? kBlockSums / most_groups : kBlockPanels;
  alignas(64) float all_sums[kBlockSums * kTileRows * kPanel];
  alignas(64) char copies[kBlockPanels * kBlockTiles * kPanelTile];
  int64_t configured[2] = {0, 0};
  for (int64_t panel0 = 0; panel0 < all_panels; panel0 += most_panels) {
    const int64_t panels = all_panels - panel0 < most_panels ? all_panels - panel0 : most_panels;
    const char* weight = p.weight + panel0 * panel_bytes;
    const char* scales = static_cast<const char*>(p.scales) + panel0 * scale_bytes;
    for (int64_t g0 = 0; g0 < all_groups; g0 += most_groups) {
      const int64_t g1 = all_groups - g0 < most_groups ? all_groups : g0 + most_groups;
      const int64_t row0 = group_begin(g0, all_groups, p.rows), rows = group_begin(g1, all_groups, p.rows) - row0;
      const int64_t pairs = (g1 - g0 + 1) / 2;
      if (tiles == 0 || is_integer(F::kFormat)) memset(all_sums, 0, rows * panels * kPanel * sizeof(float));
      for (int64_t begin = 0; begin < tiles;) {
        int64_t end = begin + kBlockTiles < tiles ? begin + kBlockTiles : tiles;
        if (begin < stored_tiles && stored_tiles < end) end = stored_tiles;
        const bool is_stored = end <= stored_tiles;
        for (int64_t i = 0; i < panels && !is_stored; ++i) {
          copy_tiles<F>(copies + i * kBlockTiles * kPanelTile, weight + i * panel_bytes, begin, end, p.units);
        }
        // The next block of a panel, or the first one of the panel that takes its place.
        const char* next = weight + (end < tiles ? end * kStoredTile : panels * panel_bytes);
        for (int64_t i = 0; i < panels; ++i) {
          const char* block =
              is_stored ? weight + i * panel_bytes + begin * kPanelTile : copies + i * kBlockTiles * kPanelTile;
          for (int64_t pair = 0; pair < pairs; ++pair) {
            const int64_t g = g0 + 2 * pair, first = group_begin(g, all_groups, p.rows);
            const int64_t second = group_begin(g + 1, all_groups, p.rows);
            const bool two = g + 1 < g1;
            const int64_t rows0 = second - first;
            const int64_t rows1 = two ? group_begin(g + 2, all_groups, p.rows) - second : rows0;
            if (configured[0] != rows0 || configured[1] != rows1) T::configure(rows0, rows1);
            configured[0] = rows0;
            configured[1] = rows1;
            const TileBlock b = {
                all_sums + (i * rows + first - row0) * kPanel,
                {p.x + first * row_bytes, p.x + second * row_bytes},
                {block, block},
                {scales + i * scale_bytes, scales + i * scale_bytes},
                rows0,
                rows1,
                begin,
                end,
                tiles,
                next + i * panel_bytes + kStoredBlock * pair / pairs,
                (kStoredTile / 64 + pairs - 1) / pairs};
            if (two) run_tiles<T, F, 2, 1>(b);
            else run_tiles<T, F, 1, 1>(b);
          }
        }
        begin = end;
      }
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < panels; ++i) {
          const float* sums = all_sums + (i * rows + row) * kPanel;
          write_row<F>(p, sums, scales + i * scale_bytes, row0 + row, (panel0 + i) * kPanel);
        }
      }
    }
  }
  T::release();
}

template <typename T, typename F>
void gemm_tiles(const GemmBlock& p) {
  if (p.rows > kTileRows) return gemm_groups<T, F>(p);
  if (p.rows > 1) return gemm_group<T, F>(p);
  if constexpr (is_integer(F::kFormat)) gemm_vectors<F>(p);
  else gemm_row<T, F>(p);
}

}  // namespace

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
