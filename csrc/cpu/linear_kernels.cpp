// The products with packed weights, out[r][n] = sum_k x[r][k] * weight[n][k].
//
// A tile is a group of rows of x against one panel of the weight: its sums, kGroupRows by 32, stay in registers while the
// panel's units stream past; each is loaded once and multiplied with a broadcast of every row. Where all rows are one
// group, a panel is read from memory once, from one end to the other, and only read bandwidth counts. With more rows the
// work is bound by multiply-adds: a block of the panel stays in the cache while all groups meet it, and their sums wait
// in the cache between blocks. Bytes moved: the weight, once for every kBlockRows rows.
#include "cpu/linear_kernels.h"

#include "cpu/simd/simd.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

namespace {

constexpr int kParts = kPanel / kWidth;  // vectors side by side in a panel
// Registers: kGroupRows * kParts sums, the vectors of a unit, a broadcast; 16 in all, 32 with AVX-512.
constexpr int kGroupRows = kWidth == 16 ? 12 : kWidth == 8 ? 3 : 1;
// Where there are registers, one row meets four panels at a time: more chains of additions, and more streams of memory.
constexpr int kPanelsOfRow = kWidth == 16 ? 4 : 1;
// A panel's block fits the first cache (16 KiB), or, where a tile has work enough for each load, the second (64 KiB).
constexpr int64_t kBlockUnits = kWidth == 16 ? 512 : 128;
constexpr int64_t kBlockRows = 240;

HIGGS_INLINE UIntVec load_bits(const char* p) {
  UIntVec v;
  memcpy(&v, p, sizeof v);
  return v;
}

HIGGS_INLINE int32_t load_int(const char* p) {
  int32_t i;
  memcpy(&i, p, sizeof i);
  return i;
}

// An operand of all four weights of a lane, or of a pair, as 32 bits.
HIGGS_INLINE UIntVec splat_bits(const char* p) { return (UIntVec)(IntVec{} + load_int(p)); }

// ---- The formats. Each says how many bytes a unit of a prepared row takes, how a group of rows is prepared, and how the
// sums of a tile take one unit. The rows of a group stand side by side, 4 bytes of each in turn.

// A unit of a panel, or of several panels beside each other: vectors are counted through all.
struct Unit {
  const char* weight;
  int64_t panel_bytes;  // from one panel to the next

  inline __attribute__((always_inline)) const char* part(int j) const {
    return weight + j / kParts * panel_bytes + j % kParts * kWidth * 4;
  }
};

// Puts `count` times 4 bytes of row m of a group of `rows` to their places, from place `first` on.
HIGGS_INLINE void place_words(char* to, int64_t rows, int64_t m, int64_t first, const void* words, int64_t count) {
  const char* from = static_cast<const char*>(words);
  if (rows == 1) {
    memcpy(to + first * 4, from, count * 4);
    return;
  }
  for (int64_t i = 0; i < count; ++i) memcpy(to + ((first + i) * rows + m) * 4, from + i * 4, 4);
}

// Rows as they are, a float a column; columns beyond k are zero.
void prepare_floats(char* to, const float* x, int64_t rows, int64_t k, int64_t columns) {
  const float zero = 0;
  for (int64_t m = 0; m < rows; ++m) {
    place_words(to, rows, m, 0, x + m * k, k);
    for (int64_t i = k; i < columns; ++i) place_words(to, rows, m, i, &zero, 1);
  }
}

struct Float32 {
  static constexpr WeightFormat kFormat = WeightFormat::f32;
  static constexpr int64_t kPreparedUnitBytes = 4;
  static constexpr int64_t kGroupUnits = 0;  // no integers
  static constexpr int64_t kFloatUnits = 0;  // how many units of float32 one can be widened to

  static void prepare(char* to, const float* x, int64_t rows, int64_t k, int64_t units) {
    prepare_floats(to, x, rows, k, units);
  }

  template <int R, int J>
  HIGGS_INLINE void step(Vec (&sums)[R][J], const char* x, const Unit& unit) {
    const float* values = reinterpret_cast<const float*>(x);
    // Of the two factors, the fewer vectors stay in registers.
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

// Formats whose weights are widened to float32 one by one. Rows are prepared as for float32.
template <typename F, int kColumns>
struct Widened {
  static constexpr int64_t kPreparedUnitBytes = 4 * kColumns;
  static constexpr int64_t kGroupUnits = 0;
  static constexpr int64_t kFloatUnits = kColumns;

  static void prepare(char* to, const float* x, int64_t rows, int64_t k, int64_t units) {
    prepare_floats(to, x, rows, k, kColumns * units);
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

  // Weight i of each word: the first is its lower half.
  HIGGS_INLINE Vec widen(UIntVec words, int i) { return widen_float16(i == 0 ? words & 0xffffu : words >> 16); }
};

#if defined(__AVX512BF16__)

// Pairs of products are summed by one instruction, from bfloat16.
struct BFloat16 {
  static constexpr WeightFormat kFormat = WeightFormat::bf16;
  static constexpr int64_t kPreparedUnitBytes = 4;
  static constexpr int64_t kGroupUnits = 0;
  static constexpr int64_t kFloatUnits = 0;

  static void prepare(char* to, const float* x, int64_t rows, int64_t k, int64_t units) {
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t u = 0; u < units; u += kWidth / 2) {
        alignas(64) float values[kWidth] = {};
        const int64_t pairs = units - u < kWidth / 2 ? units - u : kWidth / 2;
        const int64_t count = k - 2 * u < kWidth ? k - 2 * u : kWidth;
        memcpy(values, x + m * k + 2 * u, count * sizeof(float));
        const __m256bh rounded = _mm512_cvtneps_pbh((__m512)load(values));
        place_words(to, rows, m, u, &rounded, pairs);
      }
    }
  }

  template <int R, int J>
  HIGGS_INLINE void step(Vec (&sums)[R][J], const char* x, const Unit& unit) {
    __m512bh w[J];
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) w[j] = (__m512bh)load_bits(unit.part(j));
#pragma GCC unroll 16
    for (int m = 0; m < R; ++m) {
      const __m512bh v = (__m512bh)splat_bits(x + 4 * m);
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) sums[m][j] = (Vec)_mm512_dpbf16_ps((__m512)sums[m][j], v, w[j]);
    }
  }
};

// Four weights are two pairs of bfloat16. That instruction takes subnormal numbers for zero, so those of e4m3, of which
// there are 8, come from a table.
struct Fp8 {
  static constexpr WeightFormat kFormat = WeightFormat::fp8;
  static constexpr int64_t kPreparedUnitBytes = 8;
  static constexpr int64_t kGroupUnits = 0;
  static constexpr int64_t kFloatUnits = 0;

  static void prepare(char* to, const float* x, int64_t rows, int64_t k, int64_t units) {
    BFloat16::prepare(to, x, rows, k, 2 * units);
  }

  // Weights 2 * pair and 2 * pair + 1 of each word.
  HIGGS_INLINE __m512bh widen(UIntVec words, int pair) {
    const __m512i order = _mm512_broadcast_i32x4(_mm_set_epi32(0x0d0d0c0c, 0x09090808, 0x05050404, 0x01010000));
    const __m512i subnormal =
        _mm512_broadcast_i32x4(_mm_set_epi16(0x3c60, 0x3c40, 0x3c20, 0x3c00, 0x3bc0, 0x3b80, 0x3b00, 0));
    // Both bytes of 16 bits are the weight.
    const __m512i twice = _mm512_shuffle_epi8((__m512i)(words >> (16 * pair)), order);
    const __m512i magnitude = _mm512_and_si512(_mm512_srli_epi16(twice, 4), _mm512_set1_epi16(0x07f0));
    // The exponents' offsets are 127 and 7.
    const __m512i normal = _mm512_add_epi16(magnitude, _mm512_set1_epi16(120 << 7));
    const __mmask32 is_subnormal = _mm512_testn_epi16_mask(twice, _mm512_set1_epi16(0x7800));
    const __m512i unsigned_bits = _mm512_mask_permutexvar_epi16(normal, is_subnormal, twice, subnormal);
    return (__m512bh)_mm512_or_si512(unsigned_bits, _mm512_and_si512(twice, _mm512_set1_epi16(-0x8000)));
  }

  template <int R, int J>
  HIGGS_INLINE void step(Vec (&sums)[R][J], const char* x, const Unit& unit) {
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; ++pair) {
      __m512bh w[J];
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) w[j] = widen(load_bits(unit.part(j)), pair);
#pragma GCC unroll 16
      for (int m = 0; m < R; ++m) {
        const __m512bh v = (__m512bh)splat_bits(x + 4 * (pair * R + m));
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) sums[m][j] = (Vec)_mm512_dpbf16_ps((__m512)sums[m][j], v, w[j]);
      }
    }
  }
};

#else

// The first of a pair is the lower half of 32 bits, the second the upper: both widen by one instruction.
struct BFloat16 : Widened<BFloat16, 2> {
  static constexpr WeightFormat kFormat = WeightFormat::bf16;

  // Weight i of each word.
  HIGGS_INLINE Vec widen(UIntVec words, int i) { return (Vec)(i == 0 ? words << 16 : words & 0xffff0000u); }
};

// The exponent's offset is 7 instead of 127; scaling by the difference also widens what is too small for it.
struct Fp8 : Widened<Fp8, 4> {
  static constexpr WeightFormat kFormat = WeightFormat::fp8;

  HIGGS_INLINE Vec widen(UIntVec words, int i) {
    const UIntVec upper = words << (24 - 8 * i);
    return (Vec)((upper & 0x80000000u) | (upper >> 4 & 0x07f00000u)) * splat(0x1p120f);
  }
};

#endif

// Rounds rows to integers of magnitude 127 at most with a scale for each group: four integers a word, then the scales
// [groups][rows] and `correction` times the sums of the integers, likewise. A NaN or an infinity makes its group's scale
// NaN.
void prepare_quantized(char* to, int32_t correction, const float* x, int64_t rows, int64_t k, int64_t columns) {
  const int64_t groups = columns / kQuantGroup;
  float* scales = reinterpret_cast<float*>(to + columns * rows);
  int32_t* sums = reinterpret_cast<int32_t*>(scales + groups * rows);
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t g = 0; g < groups; ++g) {
      alignas(64) float values[kQuantGroup] = {};
      alignas(64) int8_t bytes[kQuantGroup];
      const int64_t begin = g * kQuantGroup, count = k - begin < kQuantGroup ? k - begin : kQuantGroup;
      if (count > 0) memcpy(values, x + m * k + begin, count * sizeof(float));
      Vec magnitudes = {}, nothing = {};
      for (int64_t i = 0; i < kQuantGroup; i += kWidth) {
        const Vec v = load(values + i);
        magnitudes = larger(larger(v, -v), magnitudes);
        nothing += v * splat(0.f);
      }
      const float most = largest(magnitudes);
      const bool finite = sum(nothing) == 0;
      if (!finite) memset(values, 0, sizeof values);
      const Vec inverse = splat(most > 1e-30f && finite ? 127.f / most : 0.f);
      IntVec total = {};
      for (int64_t i = 0; i < kQuantGroup; i += kWidth) {
        const IntVec q = round_to_int(load(values + i) * inverse);
        total += q;
        const ByteVec b = __builtin_convertvector(q, ByteVec);
        memcpy(bytes + i, &b, sizeof b);
      }
      int32_t sum_of_all = 0;
      for (int lane = 0; lane < kWidth; ++lane) sum_of_all += total[lane];
      scales[g * rows + m] = finite ? most / 127.f : __builtin_nanf("");
      sums[g * rows + m] = correction * sum_of_all;
      place_words(to, rows, m, begin / 4, bytes, kQuantGroup / 4);
    }
  }
}

// What the formats of integers have alike: 8-bit integers in the order of k, four to a lane, whose sum with four unsigned
// 8-bit weights one instruction adds to 32 bits. Weights are stored or taken as unsigned, `kZero` above their value; what
// this adds too much, kZero times the sum of the row's integers, is where the sums begin.
struct Quantized {
  static constexpr int64_t kFloatUnits = 0;

  HIGGS_INLINE IntVec multiply_bytes(IntVec sum, UIntVec weights, UIntVec x) {
#if defined(__AVX512VNNI__)
    return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, (__m512i)x);
#else
    // Even and odd bytes apart, as 16-bit integers whose products are summed in pairs without saturation.
    const UIntVec even = weights & 0x00ff00ffu, odd = weights >> 8 & 0x00ff00ffu;
#if defined(__AVX2__)
    const __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)x, 8), 8);
    const __m256i x_odd = _mm256_srai_epi16((__m256i)x, 8);
    return sum + (IntVec)_mm256_madd_epi16((__m256i)even, x_even) + (IntVec)_mm256_madd_epi16((__m256i)odd, x_odd);
#else
    const IntVec e = (IntVec)even, o = (IntVec)odd, v = (IntVec)x;
    return sum + (e & 0xffff) * (v << 24 >> 24) + (o & 0xffff) * (v << 16 >> 24) + (e >> 16) * (v << 8 >> 24) +
           (o >> 16) * (v >> 24);
#endif
#endif
  }
};

struct Int8 : Quantized {
  static constexpr WeightFormat kFormat = WeightFormat::int8;
  static constexpr int64_t kPreparedUnitBytes = 4;
  static constexpr int64_t kGroupUnits = kQuantGroup / 4;
  static constexpr int32_t kZero = 128;

  static void prepare(char* to, const float* x, int64_t rows, int64_t k, int64_t units) {
    prepare_quantized(to, -kZero, x, rows, k, 4 * units);
  }

  template <int R, int J>
  HIGGS_INLINE void step(IntVec (&sums)[R][J], const char* x, const Unit& unit) {
    UIntVec w[J];
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) w[j] = load_bits(unit.part(j)) ^ 0x80808080u;
#pragma GCC unroll 16
    for (int m = 0; m < R; ++m) {
      const UIntVec v = splat_bits(x + 4 * m);
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) sums[m][j] = multiply_bytes(sums[m][j], w[j], v);
    }
  }

  HIGGS_INLINE Vec group_scale(const void*, int64_t, int) { return splat(1.f); }
};

struct Int4 : Quantized {
  static constexpr WeightFormat kFormat = WeightFormat::int4;
  static constexpr int64_t kPreparedUnitBytes = 8;
  static constexpr int64_t kGroupUnits = kQuantGroup / 8;
  static constexpr int32_t kZero = 8;

  static void prepare(char* to, const float* x, int64_t rows, int64_t k, int64_t units) {
    prepare_quantized(to, -kZero, x, rows, k, 8 * units);
  }

  template <int R, int J>
  HIGGS_INLINE void step(IntVec (&sums)[R][J], const char* x, const Unit& unit) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      UIntVec w[J];
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) w[j] = load_bits(unit.part(j)) >> (4 * i) & 0x0f0f0f0fu;
#pragma GCC unroll 16
      for (int m = 0; m < R; ++m) {
        const UIntVec v = splat_bits(x + 4 * (i * R + m));
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) sums[m][j] = multiply_bytes(sums[m][j], w[j], v);
      }
    }
  }

  HIGGS_INLINE Vec group_scale(const void* scales, int64_t group, int j) {
    return load(static_cast<const float16*>(scales) + group * kPanel + j * kWidth);
  }
};

// ---- Tiles

// A group of R rows against units [begin, end) of a panel that has `units`, or of kPanels panels one behind the other;
// `waiting` [R, kPanels * kPanel] holds the sums so far.
struct Tile {
  float* waiting;
  const char* x;       // the group, prepared
  const char* weight;  // unit `begin` of the first panel
  const void* scales;  // the first panel's
  int64_t begin, end, units;
};

// The scale of a quantization group for vector j of a tile's panels.
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
    for (int j = 0; j < J; ++j) sums[m][j] = t.begin == 0 ? Vec{} : load(t.waiting + (m * J + j) * kWidth);
  }
  const char* x = t.x + t.begin * F::kPreparedUnitBytes * R;
  Unit unit = {t.weight, t.units * kUnitBytes};
  if constexpr (F::kGroupUnits > 0) {
    const int64_t groups = t.units / F::kGroupUnits;
    const float* scales = reinterpret_cast<const float*>(t.x + t.units * F::kPreparedUnitBytes * R);
    const int32_t* zeros = reinterpret_cast<const int32_t*>(scales + groups * R);
    for (int64_t g = t.begin / F::kGroupUnits; g < t.end / F::kGroupUnits; ++g) {
      IntVec integers[R][J];
#pragma GCC unroll 16
      for (int m = 0; m < R; ++m) {
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) integers[m][j] = IntVec{} + zeros[g * R + m];
      }
#pragma GCC unroll 4
      for (int64_t u = 0; u < F::kGroupUnits; ++u) {
        F::step(integers, x, unit);
        x += F::kPreparedUnitBytes * R;
        unit.weight += kUnitBytes;
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
      F::step(sums, x, unit);
      x += F::kPreparedUnitBytes * R;
      unit.weight += kUnitBytes;
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < R; ++m) {
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) store(t.waiting + (m * J + j) * kWidth, sums[m][j]);
  }
}

template <typename F>
HIGGS_INLINE void dispatch_tile(const Tile& t, int64_t rows) {
  switch (rows) {
    case 1: return run_tile<F, 1>(t);
#if defined(__AVX2__)
    case 2: return run_tile<F, 2>(t);
    case 3: return run_tile<F, 3>(t);
#endif
#if defined(__AVX512F__)
    case 4: return run_tile<F, 4>(t);
    case 5: return run_tile<F, 5>(t);
    case 6: return run_tile<F, 6>(t);
    case 7: return run_tile<F, 7>(t);
    case 8: return run_tile<F, 8>(t);
    case 9: return run_tile<F, 9>(t);
    case 10: return run_tile<F, 10>(t);
    case 11: return run_tile<F, 11>(t);
    case 12: return run_tile<F, 12>(t);
#endif
  }
}

// Units of a panel as F::kFloatUnits times as many of float32.
template <typename F>
HIGGS_INLINE void widen_units(char* to, const char* weight, int64_t units) {
  for (int64_t u = 0; u < units; ++u, weight += kUnitBytes) {
#pragma GCC unroll 4
    for (int i = 0; i < F::kFloatUnits; ++i, to += kUnitBytes) {
      for (int j = 0; j < kParts; ++j) {
        store(reinterpret_cast<float*>(to) + j * kWidth, F::widen(load_bits(weight + j * kWidth * 4), i));
      }
    }
  }
}

template <typename F>
HIGGS_INLINE void write_row(const ProductBlock& p, const float* sums, const void* scales, int64_t row, int64_t n0) {
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

template <typename F>
void product(const ProductBlock& p) {
  alignas(64) float waiting[kBlockRows * kPanel];
  int64_t row_bytes = p.units * F::kPreparedUnitBytes;
  if constexpr (F::kGroupUnits > 0) row_bytes += p.units / F::kGroupUnits * 8;
  const int64_t scale_bytes = panel_scale_bytes(F::kFormat, p.units);
  const int64_t groups = group_count(p.rows, kGroupRows);
  // Widened, a block may be twice as large.
  constexpr int64_t kBlock = F::kFloatUnits == 0 ? kBlockUnits : 2 * kBlockUnits / F::kFloatUnits;
  const int64_t block_units = groups == 1 ? p.units : kBlock;
  constexpr int64_t kBlockGroups = kBlockRows / kGroupRows;
  int64_t n0 = 0;
  if constexpr (kPanelsOfRow > 1) {
    for (; p.rows == 1 && n0 + (kPanelsOfRow - 1) * kPanel < p.n; n0 += kPanelsOfRow * kPanel) {
      const char* weight = p.weight + n0 / kPanel * p.units * kUnitBytes;
      const char* scales = static_cast<const char*>(p.scales) + n0 / kPanel * scale_bytes;
      run_tile<F, 1, kPanelsOfRow>({waiting, p.x, weight, scales, 0, p.units, p.units});
      for (int i = 0; i < kPanelsOfRow; ++i) {
        write_row<F>(p, waiting + i * kPanel, scales + i * scale_bytes, 0, n0 + i * kPanel);
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
      if (p.units == 0) memset(waiting, 0, (row1 - row0) * kPanel * sizeof(float));
      for (int64_t begin = 0; begin < p.units; begin += block_units) {
        const int64_t end = p.units - begin < block_units ? p.units : begin + block_units;
        const char* block = weight + begin * kUnitBytes;
        // Enough groups share a block: it pays to widen it once.
        if constexpr (F::kFloatUnits > 0) {
          if (g1 - g0 >= 4) {
            constexpr int64_t kFloats = F::kFloatUnits;
            alignas(64) char widened[kFloats * kBlock * kUnitBytes];
            widen_units<F>(widened, block, end - begin);
            for (int64_t g = g0; g < g1; ++g) {
              const int64_t row = group_begin(g, groups, p.rows), count = group_begin(g + 1, groups, p.rows) - row;
              float* sums = waiting + (row - row0) * kPanel;
              dispatch_tile<Float32>(
                  {sums, p.x + row * row_bytes, widened, scales, kFloats * begin, kFloats * end, 0}, count);
            }
            continue;
          }
        }
        for (int64_t g = g0; g < g1; ++g) {
          const int64_t row = group_begin(g, groups, p.rows), count = group_begin(g + 1, groups, p.rows) - row;
          float* sums = waiting + (row - row0) * kPanel;
          dispatch_tile<F>({sums, p.x + row * row_bytes, block, scales, begin, end, p.units}, count);
        }
      }
      for (int64_t row = row0; row < row1; ++row) write_row<F>(p, waiting + (row - row0) * kPanel, scales, row, n0);
    }
  }
}

template <typename F>
constexpr FormatKernels format_kernels() {
  return {F::kPreparedUnitBytes, F::prepare, product<F>};
}

// ---- What stands before and behind the products

template <typename T>
void rms_norm(float* out, const float* x, const T* weight, int64_t k, float eps) {
  Vec squares = {};
  float tail = 0;
  int64_t i = 0;
  for (; i + kWidth <= k; i += kWidth) squares += load(x + i) * load(x + i);
  for (; i < k; ++i) tail += x[i] * x[i];
  const float scale = 1.0f / __builtin_sqrtf((sum(squares) + tail) / static_cast<float>(k) + eps);
  for (i = 0; i + kWidth <= k; i += kWidth) store(out + i, load(x + i) * splat(scale) * load(weight + i));
  for (; i < k; ++i) out[i] = x[i] * scale * to_float(weight[i]);
}

void silu_mul(float* out, const float* gate, const float* up, int64_t n) {
  for (int64_t i = 0; i < n; i += kWidth) {
    const int64_t count = n - i < kWidth ? n - i : kWidth;
    Vec g = {}, u = {};
    memcpy(&g, gate + i, count * sizeof(float));
    memcpy(&u, up + i, count * sizeof(float));
    Vec y = g / (splat(1.f) + exp(-g)) * u;
    memcpy(out + i, &y, count * sizeof(float));
  }
}

}  // namespace

const LinearKernels linear_kernels = {
    kGroupRows,
    {format_kernels<Float32>(), format_kernels<BFloat16>(), format_kernels<Float16>(), format_kernels<Fp8>(),
     format_kernels<Int8>(), format_kernels<Int4>()},
    rms_norm<float>,
    rms_norm<bfloat16>,
    rms_norm<float16>,
    silu_mul,
};

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
