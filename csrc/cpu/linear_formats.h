// The weight formats of the CPU's GEMM, for linear_kernels.cpp. A format says how activations are packed for it,
// and how sums take one unit of weights.
#pragma once

#include "common/weight_format.h"
#include "cpu/linear_kernels.h"
#include "cpu/linear_orders.h"
#include "cpu/simd/simd.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

namespace {

constexpr int kParts = kPanel / kWidth;  // vectors of one unit

HIGGS_INLINE UIntVec load_bits(const char* p) {
  UIntVec v;
  memcpy(&v, p, sizeof v);
  return v;
}

// 4 bytes, in every lane.
HIGGS_INLINE UIntVec splat_bits(const char* p) {
  int32_t i;
  memcpy(&i, p, sizeof i);
  return (UIntVec)(IntVec{} + i);
}

// A unit of one panel, or the units at the same k of neighboring panels: vectors are counted through all of them.
struct Unit {
  const char* weight;
  int64_t panel_bytes;

  inline __attribute__((always_inline)) const char* part(int j) const {
    return weight + j / kParts * panel_bytes + j % kParts * kWidth * 4;
  }
};

// ---- Weights that are multiplied in float32

// Activations stay float32; columns beyond k are zero.
template <typename Order>
void pack_floats(char* to, const float* x, const GroupRows& rows, int64_t k, int64_t columns) {
  const float zero = 0;
  for (int64_t m = rows.begin; m < rows.end; ++m) {
    Order::write(to, rows.count, m, 0, x + (m - rows.begin) * k, k);
    for (int64_t i = k; i < columns; ++i) Order::write(to, rows.count, m, i, &zero, 1);
  }
}

struct Float32 {
  static constexpr WeightFormat kFormat = WeightFormat::f32;
  static constexpr int64_t kPackedUnitBytes = 4;  // of one row's activations
  static constexpr int64_t kGroupUnits = 0;       // units of a quantization group; 0: sums are float32
  static constexpr int64_t kFloatUnits = 0;       // units of float32 that one unit widens to; 0: never widened

  template <typename Order>
  static void pack(char* to, const float* x, const GroupRows& rows, int64_t k, int64_t units) {
    pack_floats<Order>(to, x, rows, k, units);
  }

  template <int R, int J>
  HIGGS_INLINE void step(Vec (&sums)[R][J], const char* x, const Unit& unit) {
    const float* values = reinterpret_cast<const float*>(x);
    // Keep the smaller operand in registers.
    if constexpr (R < J) {
      Vec v[R];
#pragma GCC unroll 16
      for (int m = 0; m < R; ++m) v[m] = splat(values[m]);
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) {
        const Vec w = load(reinterpret_cast<const float*>(unit.part(j)));
#pragma GCC unroll 16
        for (int m = 0; m < R; ++m) sums[m][j] += v[m] * w;
      }
    } else {
      Vec w[J];
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) w[j] = load(reinterpret_cast<const float*>(unit.part(j)));
#pragma GCC unroll 16
      for (int m = 0; m < R; ++m) {
        const Vec v = splat(values[m]);
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) sums[m][j] += v * w[j];
      }
    }
  }
};

// A format of kColumns weights per word, each widened to float32.
template <typename F, int kColumns>
struct Widened {
  static constexpr int64_t kPackedUnitBytes = 4 * kColumns;
  static constexpr int64_t kGroupUnits = 0;
  static constexpr int64_t kFloatUnits = kColumns;

  template <typename Order>
  static void pack(char* to, const float* x, const GroupRows& rows, int64_t k, int64_t units) {
    pack_floats<Order>(to, x, rows, k, kColumns * units);
  }

  template <int R, int J>
  HIGGS_INLINE void step(Vec (&sums)[R][J], const char* x, const Unit& unit) {
    const float* values = reinterpret_cast<const float*>(x);
#pragma GCC unroll 4
    for (int i = 0; i < kColumns; ++i) {
      Vec v[R];
#pragma GCC unroll 16
      for (int m = 0; m < R; ++m) v[m] = splat(values[i * R + m]);
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) {
        const Vec w = F::widen(load_bits(unit.part(j)), i);
#pragma GCC unroll 16
        for (int m = 0; m < R; ++m) sums[m][j] += v[m] * w;
      }
    }
  }
};

struct Float16 : Widened<Float16, 2> {
  static constexpr WeightFormat kFormat = WeightFormat::f16;

  // Weight i of each word; weight 0 is the lower half.
  HIGGS_INLINE Vec widen(UIntVec words, int i) { return widen_float16(i == 0 ? words & 0xffffu : words >> 16); }
};

struct WidenedBFloat16 : Widened<WidenedBFloat16, 2> {
  static constexpr WeightFormat kFormat = WeightFormat::bf16;

  // Weight i of each word; weight 0 is the lower half. One instruction widens either.
  HIGGS_INLINE Vec widen(UIntVec words, int i) { return (Vec)(i == 0 ? words << 16 : words & 0xffff0000u); }
};

struct WidenedFp8 : Widened<WidenedFp8, 4> {
  static constexpr WeightFormat kFormat = WeightFormat::fp8;

  // Scaling corrects the exponent's offset, 7 instead of 127, and normalizes subnormal numbers.
  HIGGS_INLINE Vec widen(UIntVec words, int i) {
    const UIntVec upper = words << (24 - 8 * i);
    return (Vec)((upper & 0x80000000u) | (upper >> 4 & 0x07f00000u)) * splat(0x1p120f);
  }
};

// ---- Weights that are multiplied in pairs of bfloat16, by one instruction; P: BFloat16Pairs

// Widens pairs of activations and weights to float32, and adds their products to `first` and `second`.
template <int J, typename Words>
HIGGS_INLINE void add_pairs(Vec (&first)[J], Vec (&second)[J], UIntVec x, const Words& words) {
  const Vec x0 = (Vec)(x << 16), x1 = (Vec)(x & 0xffff0000u);
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) {
    const UIntVec w = words(j);
    first[j] += x0 * (Vec)(w << 16);
    second[j] += x1 * (Vec)(w & 0xffff0000u);
  }
}

// Activations are rounded to bfloat16, a pair per word.
template <typename P>
struct PairedBFloat16 {
  static constexpr WeightFormat kFormat = WeightFormat::bf16;
  static constexpr int64_t kPackedUnitBytes = 4;
  static constexpr int64_t kGroupUnits = 0;
  static constexpr int64_t kFloatUnits = 0;

  template <typename Order>
  static void pack(char* to, const float* x, const GroupRows& rows, int64_t k, int64_t units) {
    for (int64_t m = rows.begin; m < rows.end; ++m) {
      const float* row = x + (m - rows.begin) * k;
      int64_t u = 0;
      for (; 2 * u + kWidth <= k; u += kWidth / 2) {
        const typename P::Half rounded = P::round(load(row + 2 * u));
        Order::write(to, rows.count, m, u, &rounded, kWidth / 2);
      }
      for (; u < units; u += kWidth / 2) {
        const int64_t count = k - 2 * u, left = units - u;
        const typename P::Half rounded = P::round(count > 0 ? load(row + 2 * u, count) : Vec{});
        Order::write(to, rows.count, m, u, &rounded, left < kWidth / 2 ? left : kWidth / 2);
      }
    }
  }

  // Adds the products of one row in the order of tiles: those of first and of second weights apart.
  template <int J>
  HIGGS_INLINE void step_in_tile(Vec (&first)[J], Vec (&second)[J], const char* x, const Unit& unit) {
    add_pairs(first, second, splat_bits(x), [&](int j) { return load_bits(unit.part(j)); });
  }

  template <int R, int J>
  HIGGS_INLINE void step(Vec (&sums)[R][J], const char* x, const Unit& unit) {
    typename P::Pairs w[J];
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) w[j] = P::from_words(load_bits(unit.part(j)));
#pragma GCC unroll 16
    for (int m = 0; m < R; ++m) {
      const typename P::Pairs v = P::from_words(splat_bits(x + 4 * m));
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) sums[m][j] = P::dot(sums[m][j], v, w[j]);
    }
  }
};

// Four weights of a word are two pairs.
template <typename P>
struct PairedFp8 {
  static constexpr WeightFormat kFormat = WeightFormat::fp8;
  static constexpr int64_t kPackedUnitBytes = 8;
  static constexpr int64_t kGroupUnits = 0;
  static constexpr int64_t kFloatUnits = 0;

  template <typename Order>
  static void pack(char* to, const float* x, const GroupRows& rows, int64_t k, int64_t units) {
    PairedBFloat16<P>::template pack<Order>(to, x, rows, k, 2 * units);
  }

  // Writes two units of pairs.
  HIGGS_INLINE void expand(char* to, const char* unit) {
    for (int pair = 0; pair < 2; ++pair) {
      for (int j = 0; j < kParts; ++j) {
        const typename P::Pairs w = P::widen_e4m3(load_bits(unit + j * kWidth * 4), pair);
        memcpy(to + (pair * kParts + j) * kWidth * 4, &w, sizeof w);
      }
    }
  }

  template <int J>
  HIGGS_INLINE void step_in_tile(Vec (&first)[J], Vec (&second)[J], const char* x, const Unit& unit) {
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; ++pair) {
      add_pairs(first, second, splat_bits(x + 4 * pair), [&](int j) {
        return (UIntVec)P::widen_e4m3(load_bits(unit.part(j)), pair);
      });
    }
  }

  template <int R, int J>
  HIGGS_INLINE void step(Vec (&sums)[R][J], const char* x, const Unit& unit) {
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; ++pair) {
      typename P::Pairs w[J];
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) w[j] = P::widen_e4m3(load_bits(unit.part(j)), pair);
#pragma GCC unroll 16
      for (int m = 0; m < R; ++m) {
        const typename P::Pairs v = P::from_words(splat_bits(x + 4 * (pair * R + m)));
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) sums[m][j] = P::dot(sums[m][j], v, w[j]);
      }
    }
  }
};

template <bool kPairs, typename P>
struct Formats16 {
  using BFloat16 = PairedBFloat16<P>;
  using Fp8 = PairedFp8<P>;
};
template <typename P>
struct Formats16<false, P> {
  using BFloat16 = WidenedBFloat16;
  using Fp8 = WidenedFp8;
};
using BFloat16 = Formats16<kHasBFloat16Pairs, BFloat16Pairs>::BFloat16;
using Fp8 = Formats16<kHasBFloat16Pairs, BFloat16Pairs>::Fp8;

// ---- Weights that are multiplied as integers. Activations are rounded to 8 bits with a scale per group.
//
// Weights are stored, or made unsigned for products that take them so, with kZero added to each. Sums start at -kZero
// times the sum of the row's integers, which corrects for it.

// Rounds rows to integers of magnitude 127 at most: four integers per word, then the scales [groups][rows] and
// `correction` times the sums of the integers [groups][rows]. A NaN or an infinity makes its group's scale NaN.
template <typename Order>
void pack_integers(char* to, int32_t correction, const float* x, const GroupRows& rows, int64_t k, int64_t columns) {
  const int64_t groups = columns / kQuantGroup;
  float* scales = reinterpret_cast<float*>(to + columns * rows.count);
  int32_t* sums = reinterpret_cast<int32_t*>(scales + groups * rows.count);
  for (int64_t m = rows.begin; m < rows.end; ++m) {
    for (int64_t g = 0; g < groups; ++g) {
      alignas(64) float values[kQuantGroup] = {};
      alignas(64) int8_t bytes[kQuantGroup];
      const int64_t begin = g * kQuantGroup, count = k - begin < kQuantGroup ? k - begin : kQuantGroup;
      if (count > 0) memcpy(values, x + (m - rows.begin) * k + begin, count * sizeof(float));
      Vec magnitudes = {}, not_finite = {};
      for (int64_t i = 0; i < kQuantGroup; i += kWidth) {
        const Vec v = load(values + i);
        magnitudes = larger(larger(v, -v), magnitudes);
        not_finite += v * splat(0.f);
      }
      const float max = largest(magnitudes);
      const bool finite = sum(not_finite) == 0;
      if (!finite) memset(values, 0, sizeof values);
      const Vec inverse = splat(max > kMinRounded && finite ? 127.f / max : 0.f);
      IntVec total = {};
      for (int64_t i = 0; i < kQuantGroup; i += kWidth) {
        const IntVec q = round_to_int(load(values + i) * inverse);
        total += q;
        const ByteVec b = __builtin_convertvector(q, ByteVec);
        memcpy(bytes + i, &b, sizeof b);
      }
      int32_t sum_of_all = 0;
      for (int lane = 0; lane < kWidth; ++lane) sum_of_all += total[lane];
      scales[g * rows.count + m] = finite ? max / 127.f : __builtin_nanf("");
      sums[g * rows.count + m] = correction * sum_of_all;
      Order::write(to, rows.count, m, begin / 4, bytes, kQuantGroup / 4);
    }
  }
}

struct Int8 {
  static constexpr WeightFormat kFormat = WeightFormat::int8;
  static constexpr int64_t kPackedUnitBytes = 4;
  static constexpr int64_t kGroupUnits = kQuantGroup / 4;
  static constexpr int64_t kUnitsAtOnce = 1;
  static constexpr int64_t kFloatUnits = 0;
  static constexpr int32_t kZero = kSignedWeights ? 0 : 128;

  template <typename Order>
  static void pack(char* to, const float* x, const GroupRows& rows, int64_t k, int64_t units) {
    pack_integers<Order>(to, -kZero, x, rows, k, 4 * units);
  }

  template <int R, int J>
  HIGGS_INLINE void step(IntVec (&sums)[R][J], const char* x, const Unit& unit) {
    constexpr uint32_t kToStored = kSignedWeights ? 0 : 0x80808080u;
    UIntVec w[J];
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) w[j] = load_bits(unit.part(j)) ^ kToStored;
#pragma GCC unroll 16
    for (int m = 0; m < R; ++m) {
      const UIntVec v = splat_bits(x + 4 * m);
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) sums[m][j] = dot_bytes(sums[m][j], w[j], v);
    }
  }

  HIGGS_INLINE Vec group_scale(const void*, int64_t, int) { return splat(1.f); }
};

struct Int4 {
  static constexpr WeightFormat kFormat = WeightFormat::int4;
  static constexpr int64_t kPackedUnitBytes = 8;
  static constexpr int64_t kGroupUnits = kQuantGroup / 8;
  static constexpr int64_t kUnitsAtOnce = kShortSumTimes > 0 ? kShortSumTimes / 2 : 1;
  static constexpr int64_t kFloatUnits = 0;
  static constexpr int32_t kZero = 8;

  template <typename Order>
  static void pack(char* to, const float* x, const GroupRows& rows, int64_t k, int64_t units) {
    pack_integers<Order>(to, -kZero, x, rows, k, 8 * units);
  }

  // Writes two units of signed bytes.
  HIGGS_INLINE void expand(char* to, const char* unit) {
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < kParts; ++j) {
        // w + 8, from 0 to 15, becomes w: bytes do not borrow from each other where bit 7 is set first and flipped back.
        const UIntVec w = load_bits(unit + j * kWidth * 4) >> (4 * i) & 0x0f0f0f0fu;
        const UIntVec v = ((w | 0x80808080u) - 0x08080808u) ^ 0x80808080u;
        memcpy(to + (i * kParts + j) * kWidth * 4, &v, sizeof v);
      }
    }
  }

  // Integers 4 i .. 4 i + 3 of each word of a unit's vector j, with kZero added.
  HIGGS_INLINE UIntVec part(const Unit& unit, int j, int i) { return load_bits(unit.part(j)) >> (4 * i) & 0x0f0f0f0fu; }

  template <int R, int J, typename S = ShortSums>
  HIGGS_INLINE void step(IntVec (&sums)[R][J], const char* x, Unit unit) {
    if constexpr (kShortSumTimes > 0) {
      typename S::Sums short_sums[R][J] = {};
      // Not unrolled: GCC would compute the products of all units first, and spill them.
#pragma GCC unroll 1
      for (int u = 0; u < kUnitsAtOnce; ++u, unit.weight += kUnitBytes) {
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i, x += 4 * R) {
#pragma GCC unroll 8
          for (int j = 0; j < J; ++j) {
            const UIntVec w = part(unit, j, i);
#pragma GCC unroll 16
            for (int m = 0; m < R; ++m) {
              short_sums[m][j] = S::add_products(short_sums[m][j], w, splat_bits(x + 4 * m));
            }
          }
        }
      }
#pragma GCC unroll 16
      for (int m = 0; m < R; ++m) {
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) sums[m][j] = S::add(sums[m][j], short_sums[m][j]);
      }
    } else {
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        UIntVec w[J];
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) w[j] = part(unit, j, i);
#pragma GCC unroll 16
        for (int m = 0; m < R; ++m) {
          const UIntVec v = splat_bits(x + 4 * (i * R + m));
#pragma GCC unroll 8
          for (int j = 0; j < J; ++j) sums[m][j] = dot_bytes(sums[m][j], w[j], v);
        }
      }
    }
  }

  HIGGS_INLINE Vec group_scale(const void* scales, int64_t group, int j) {
    return load(static_cast<const float16*>(scales) + group * kPanel + j * kWidth);
  }
};

// ---- Sums

// Writes the sums [kPanel] of a row and a panel, from column n0 of `out` on.
template <typename F>
HIGGS_INLINE void write_row(const GemmBlock& p, const float* sums, const void* scales, int64_t row, int64_t n0) {
  float* out = p.out + row * p.out_stride + n0;
  const float* residual = p.residual ? p.residual + row * p.out_stride + n0 : nullptr;
  const int64_t count = p.n - n0 < kPanel ? p.n - n0 : kPanel;
  float last[kPanel];
#pragma GCC unroll 8
  for (int j = 0; j < kParts; ++j) {
    Vec v = load(sums + j * kWidth);
    if constexpr (has_row_scales(F::kFormat)) v *= load(static_cast<const float*>(scales) + j * kWidth);
    if (count == kPanel) store(out + j * kWidth, residual ? load(residual + j * kWidth) + v : v);
    else store(last + j * kWidth, v);
  }
  if (count < kPanel) {
    for (int64_t i = 0; i < count; ++i) out[i] = residual ? residual[i] + last[i] : last[i];
  }
}

}  // namespace

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
