// Kernels by vectors, for linear_kernels.cpp.
//
// A tile is a group of rows of x times one panel of the weight: its sums, kGroupRows by 32, stay in registers while the
// panel's units stream by; each unit is loaded once and multiplied with a broadcast of every row. If all rows are one
// group, a panel is read from memory once, front to back, and only read bandwidth counts. With more rows the work is
// bound by multiply-adds: a block of the panel stays in the cache for all groups, whose sums are kept in the cache
// between blocks.
#pragma once

#include "cpu/linear_formats.h"
#include "cpu/linear_kernels.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

namespace {

// Registers: kGroupRows * kParts sums, and a quarter for the vectors of a unit or a broadcast.
constexpr int kMaxSums = kRegisters * 3 / 4;
constexpr int kGroupRows = kMaxSums < kParts ? 1 : kMaxSums / kParts;
// Panels that one row takes at a time: more chains of additions and more memory streams in flight.
constexpr int kPanelsOfRow = kWidth == 16 ? 4 : kWidth == 8 ? 2 : 1;
// A panel's block fits L1 (16 KiB), or L2 (64 KiB) where a tile does enough work per load.
constexpr int64_t kBlockUnits = kWidth == 16 ? 512 : 128;
constexpr int64_t kBlockRows = 240;
// Rows times columns of a unit from which a block is widened once for all groups. With AVX2, the weights that a tile
// widens and its sums don't fit the registers.
constexpr int64_t kWidenedFrom = kWidth == 8 ? 10 : INT64_MAX;
// With AVX2, tiles of one panel fetch the weights that come next: 2 KiB ahead if there is one group, else what lies behind
// the block, each group its share. With more groups, arithmetic hides the loads.
constexpr bool kFetchesAhead = kWidth == 8;
constexpr int64_t kBytesAhead = 2048, kMaxFetchingGroups = 32, kLine = 64;

// Weights that are fetched into L2 meanwhile: with each unit, a line at `first` and one at `second`, which then move on by
// `step` bytes. Null: none.
struct Ahead {
  const char *first, *second;
  int64_t step;

  inline __attribute__((always_inline)) void fetch() {
    if (!kFetchesAhead || first == nullptr) return;
    __builtin_prefetch(first, 0, 2);
    __builtin_prefetch(second, 0, 2);
    first += step;
    second += step;
  }
};

// For group g of a block of `bytes` bytes, whose tile has `units` units.
HIGGS_INLINE Ahead ahead_of(const char* block, int64_t bytes, int64_t g, int64_t groups, int64_t units) {
  if (!kFetchesAhead || groups > kMaxFetchingGroups) return {};
  if (groups == 1) return {block + kBytesAhead, block + kBytesAhead + kLine, 2 * kLine};
  const int64_t share = bytes / groups;
  const char* from = block + bytes + g * share;
  return {from, from + share / 2, share / 2 / units};
}

// Units [begin, end) of `units` of kPanels neighboring panels, for a group of R rows.
struct Tile {
  float* sums;         // [R, kPanels * kPanel]: of the units before `begin`; updated
  const char* x;       // the group's packed activations
  const char* weight;  // unit `begin` of the first panel
  const void* scales;  // of the first panel
  int64_t begin, end, units;
  Ahead ahead;
};

// The scales of a quantization group for vector j of a tile's panels.
template <typename F>
HIGGS_INLINE Vec group_scale(const Tile& t, int64_t group, int j) {
  const char* panel = static_cast<const char*>(t.scales) + j / kParts * panel_scale_bytes(F::kFormat, t.units);
  return F::group_scale(panel, group, j % kParts);
}

template <typename F, int R, int kPanels = 1>
void run_tile(const Tile& t) {
  constexpr int J = kPanels * kParts;
  Vec sums[R][J];
#pragma GCC unroll 16
  for (int m = 0; m < R; ++m) {
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) sums[m][j] = t.begin == 0 ? Vec{} : load(t.sums + (m * J + j) * kWidth);
  }
  const char* x = t.x + t.begin * F::kPackedUnitBytes * R;
  Unit unit = {t.weight, t.units * kUnitBytes};
  Ahead ahead = t.ahead;
  if constexpr (F::kGroupUnits > 0) {
    const int64_t groups = t.units / F::kGroupUnits;
    const float* scales = reinterpret_cast<const float*>(t.x + t.units * F::kPackedUnitBytes * R);
    const int32_t* zeros = reinterpret_cast<const int32_t*>(scales + groups * R);
    for (int64_t g = t.begin / F::kGroupUnits; g < t.end / F::kGroupUnits; ++g) {
      IntVec integers[R][J];
#pragma GCC unroll 16
      for (int m = 0; m < R; ++m) {
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) integers[m][j] = IntVec{} + zeros[g * R + m];
      }
#pragma GCC unroll 4
      for (int64_t u = 0; u < F::kGroupUnits; u += F::kUnitsAtOnce) {
        for (int64_t i = 0; i < F::kUnitsAtOnce; ++i) ahead.fetch();
        F::step(integers, x, unit);
        x += F::kUnitsAtOnce * F::kPackedUnitBytes * R;
        unit.weight += F::kUnitsAtOnce * kUnitBytes;
      }
#pragma GCC unroll 16
      for (int m = 0; m < R; ++m) {
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) {
          const Vec scale = splat(scales[g * R + m]) * group_scale<F>(t, g, j);
          sums[m][j] += __builtin_convertvector(integers[m][j], Vec) * scale;
        }
      }
    }
  } else {
#pragma GCC unroll 4
    for (int64_t u = t.begin; u < t.end; ++u) {
      if constexpr (F::kFormat != WeightFormat::f32) ahead.fetch();
      F::step(sums, x, unit);
      x += F::kPackedUnitBytes * R;
      unit.weight += kUnitBytes;
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < R; ++m) {
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) store(t.sums + (m * J + j) * kWidth, sums[m][j]);
  }
}

// Runs the tile of `rows` rows, 1 to kGroupRows.
template <typename F, int R = 1>
HIGGS_INLINE void dispatch_tile(const Tile& t, int64_t rows) {
  if constexpr (R < kGroupRows) {
    if (rows != R) return dispatch_tile<F, R + 1>(t, rows);
  }
  run_tile<F, R>(t);
}

// Widens units of a panel to F::kFloatUnits times as many units of float32.
template <typename F>
HIGGS_INLINE void widen_units(char* to, const char* weight, int64_t units) {
  const char* behind = weight + units * kUnitBytes;
  Ahead ahead = {behind, behind + kLine, 2 * kLine};
  for (int64_t u = 0; u < units; ++u, weight += kUnitBytes) {
    ahead.fetch();
#pragma GCC unroll 4
    for (int i = 0; i < F::kFloatUnits; ++i, to += kUnitBytes) {
      for (int j = 0; j < kParts; ++j) {
        store(reinterpret_cast<float*>(to) + j * kWidth, F::widen(load_bits(weight + j * kWidth * 4), i));
      }
    }
  }
}

template <typename F>
void gemm_vectors(const GemmBlock& p) {
  alignas(64) float sums[kBlockRows * kPanel];
  int64_t row_bytes = p.units * F::kPackedUnitBytes;
  if constexpr (F::kGroupUnits > 0) row_bytes += p.units / F::kGroupUnits * 8;
  const int64_t scale_bytes = panel_scale_bytes(F::kFormat, p.units);
  const int64_t groups = group_count(p.rows, kGroupRows);
  // A block that will be widened may be twice as large.
  constexpr int64_t kBlock = F::kFloatUnits == 0 ? kBlockUnits : 2 * kBlockUnits / F::kFloatUnits;
  const int64_t block_units = groups == 1 ? p.units : kBlock;
  constexpr int64_t kBlockGroups = kBlockRows / kGroupRows;
  int64_t n0 = 0;
  // With AVX2, what widens fp8 and the sums of two panels don't fit the registers.
  constexpr int kPanels = kWidth == 8 && F::kFloatUnits > 2 ? 1 : kPanelsOfRow;
  if constexpr (kPanels > 1) {
    for (; p.rows == 1 && n0 + (kPanels - 1) * kPanel < p.n; n0 += kPanels * kPanel) {
      const char* weight = p.weight + n0 / kPanel * p.units * kUnitBytes;
      const char* scales = static_cast<const char*>(p.scales) + n0 / kPanel * scale_bytes;
      run_tile<F, 1, kPanels>({sums, p.x, weight, scales, 0, p.units, p.units, {}});
      for (int i = 0; i < kPanels; ++i) {
        write_row<F>(p, sums + i * kPanel, scales + i * scale_bytes, 0, n0 + i * kPanel);
      }
    }
  }
  for (; n0 < p.n; n0 += kPanel) {
    const int64_t panel = n0 / kPanel;
    const char* weight = p.weight + panel * p.units * kUnitBytes;
    const void* scales = static_cast<const char*>(p.scales) + panel * scale_bytes;
    for (int64_t g0 = 0; g0 < groups; g0 += kBlockGroups) {
      const int64_t g1 = groups - g0 < kBlockGroups ? groups : g0 + kBlockGroups;
      const int64_t row0 = group_begin(g0, groups, p.rows), row1 = group_begin(g1, groups, p.rows);
      if (p.units == 0) memset(sums, 0, (row1 - row0) * kPanel * sizeof(float));
      for (int64_t begin = 0; begin < p.units; begin += block_units) {
        const int64_t end = p.units - begin < block_units ? p.units : begin + block_units;
        const char* block = weight + begin * kUnitBytes;
        const int64_t units = end - begin;
        // With more groups, widening the block once is faster than widening it for each group.
        if constexpr (F::kFloatUnits > 0) {
          if (groups > 1 && (p.rows * F::kFloatUnits >= kWidenedFrom || g1 - g0 >= 4)) {
            constexpr int64_t kFloats = F::kFloatUnits;
            alignas(64) char widened[kFloats * kBlock * kUnitBytes];
            widen_units<F>(widened, block, units);
            for (int64_t g = g0; g < g1; ++g) {
              const int64_t row = group_begin(g, groups, p.rows), count = group_begin(g + 1, groups, p.rows) - row;
              float* group_sums = sums + (row - row0) * kPanel;
              dispatch_tile<Float32>(
                  {group_sums, p.x + row * row_bytes, widened, scales, kFloats * begin, kFloats * end, 0, {}}, count);
            }
            continue;
          }
        }
        for (int64_t g = g0; g < g1; ++g) {
          const int64_t row = group_begin(g, groups, p.rows), count = group_begin(g + 1, groups, p.rows) - row;
          float* group_sums = sums + (row - row0) * kPanel;
          dispatch_tile<F>(
              {group_sums, p.x + row * row_bytes, block, scales, begin, end, p.units,
               ahead_of(block, units * kUnitBytes, g, groups, units)},
              count);
        }
      }
      for (int64_t row = row0; row < row1; ++row) write_row<F>(p, sums + (row - row0) * kPanel, scales, row, n0);
    }
  }
}

}  // namespace

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
