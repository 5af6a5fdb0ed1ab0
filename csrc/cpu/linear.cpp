// out = x @ weight.T + residual, and out = rms_norm(x) @ weight.T, with packed weights. Threads take chunks of a
// weight's panels; the inner kernels are in linear_kernels.cpp.
// Bytes moved: the weight, once for up to 240 rows, or 512 by tiles.
#include "cpu/linear.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "args/linear.h"
#include "cpu/decoder.h"
#include "cpu/low_rank.h"

namespace higgs_native::cpu {

namespace {

void rms_norm_linear_cpu(
    const Tensor& out, const Tensor& x, const Tensor& norm_weight, double eps, const Tensor& weight,
    const OptionalTensor& scales) {
  const RmsNormLinear args = check_rms_norm_linear(out, x, norm_weight, weight, scales);
  if (args.rows == 0) return;
  struct Activations;
  const RowNorm norm = {norm_weight, norm_weight, args.rows, static_cast<float>(eps)};
  gemm(args.out, args.weight, pack_activations<Activations>(args.weight, args.x, args.rows, &norm), args.rows);
}

// Words of 4 bytes that are stored as they are: `bytes` bytes of a row.
struct PlainWords {
  int64_t bytes;

  int64_t count() const { return bytes / 4; }  // whole words
  bool has_rest() const { return bytes % 4 != 0; }
  int64_t row_bytes() const { return bytes; }

  uint32_t operator()(const char* from, int64_t u) const {
    uint32_t word;
    std::memcpy(&word, from + u * 4, 4);
    return word;
  }

  // The last word, filled up with zeros.
  uint32_t rest(const char* from) const {
    uint32_t word = 0;
    std::memcpy(&word, from + count() * 4, bytes % 4);
    return word;
  }
};

// Words of eight 4-bit integers of a row of k: four in the low halves of the bytes, then four in the high halves.
struct Int4Words {
  int64_t k;

  int64_t count() const { return k / 8; }
  bool has_rest() const { return k % 8 != 0; }
  int64_t row_bytes() const { return k; }

  // Zero is stored as 8.
  static uint32_t word(uint64_t bytes) {
    const uint64_t stored = (bytes & 0x0f0f0f0f0f0f0f0f) ^ 0x0808080808080808;
    return static_cast<uint32_t>(stored) | static_cast<uint32_t>(stored >> 32) << 4;
  }

  uint32_t operator()(const char* from, int64_t u) const {
    uint64_t bytes;
    std::memcpy(&bytes, from + u * 8, 8);
    return word(bytes);
  }

  uint32_t rest(const char* from) const {
    uint64_t bytes = 0;
    std::memcpy(&bytes, from + count() * 8, k % 8);
    return word(bytes);
  }
};

// Writes `rows` rows from `from` on, or zeros if it is null, as the first rows of a panel of `units` units. It works in
// blocks that read whole cache lines of each row and write whole cache lines of the panel.
template <typename Words>
void pack_block(char* packed, const char* from, int64_t rows, int64_t units, const Words& words) {
  constexpr int64_t kBlock = 16;
  const uint32_t zeros = std::is_same_v<Words, Int4Words> ? Int4Words::word(0) : 0;
  const int64_t whole = from ? words.count() : 0, stride = words.row_bytes();
  for (int64_t begin = 0; begin < whole; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, whole);
    for (int64_t first = 0; first < rows; first += kBlock) {
      const int64_t last = std::min(first + kBlock, rows);
      for (int64_t u = begin; u < end; ++u) {
        char* to = packed + u * kUnitBytes;
        for (int64_t r = first; r < last; ++r) {
          const uint32_t word = words(from + r * stride, u);
          std::memcpy(to + r * 4, &word, 4);
        }
      }
    }
  }
  for (int64_t u = whole; u < units; ++u) {
    for (int64_t r = 0; r < rows; ++r) {
      const uint32_t word = from && u == whole && words.has_rest() ? words.rest(from + r * stride) : zeros;
      std::memcpy(packed + u * kUnitBytes + r * 4, &word, 4);
    }
  }
}

template <typename Words>
void pack_panels(const PackLinear& p, const Words& words) {
  for_ranges(p.panels, p.panel_rows * p.k, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      char* target = p.packed + panel * p.units * kUnitBytes + p.first_row * 4;
      const int64_t row = panel * p.panel_rows, rows = std::clamp<int64_t>(p.n - row, 0, p.panel_rows);
      pack_block(target, p.weight + row * words.row_bytes(), rows, p.units, words);
      pack_block(target + rows * 4, nullptr, p.panel_rows - rows, p.units, words);
    }
  });
}

void linear_registered(
    const Tensor& out, const Tensor& x, const Tensor& weight, const OptionalTensor& scales,
    const OptionalTensor& residual) {
  linear_cpu(out, x, weight, scales, residual, {});
}

void pack_linear_cpu(const Tensor& packed, const Tensor& weight, int64_t first_row, int64_t panel_rows) {
  const PackLinear p = check_pack_linear(packed, weight, first_row, panel_rows);
  if (p.format == WeightFormat::int4) pack_panels(p, Int4Words{p.k});
  else pack_panels(p, PlainWords{p.k * p.element_bytes});
}

}  // namespace

void rms_norm(float* out, const float* x, const Tensor& weight, int64_t k, float eps) {
  const LinearKernels& kernels = linear_kernels();
  switch (number_type(weight)) {
    case NumberType::float32:
      kernels.rms_norm_f32(out, x, static_cast<const float*>(weight.const_data_ptr()), k, eps);
      break;
    case NumberType::bfloat16:
      kernels.rms_norm_bf16(out, x, static_cast<const bfloat16*>(weight.const_data_ptr()), k, eps);
      break;
    case NumberType::float16:
      kernels.rms_norm_f16(out, x, static_cast<const float16*>(weight.const_data_ptr()), k, eps);
      break;
  }
}

void linear_cpu(
    const Tensor& out, const Tensor& x, const Tensor& weight, const OptionalTensor& scales,
    const OptionalTensor& residual, const LowRank& low_rank) {
  const Linear args = check_linear(out, x, weight, scales, residual);
  if (args.rows == 0) return;
  struct Activations;
  const LowRankSum added(low_rank, args.x, 0, args.rows, args.weight.n, args.weight.k);
  gemm(
      args.out, args.weight, pack_activations<Activations>(args.weight, args.x, args.rows), args.rows, args.residual,
      &added);
}

int64_t packed_f32_bytes(int64_t n, int64_t k) { return ceil_div(n, kPanel) * k * kUnitBytes; }

void pack_f32(char* packed, const float* weight, int64_t n, int64_t k) {
  const PlainWords words = {k * 4};
  for (int64_t row = 0; row < n; row += kPanel, packed += k * kUnitBytes) {
    const int64_t rows = std::min(kPanel, n - row);
    pack_block(packed, reinterpret_cast<const char*>(weight + row * k), rows, k, words);
    pack_block(packed + rows * 4, nullptr, kPanel - rows, k, words);
  }
}

void pack_rows(
    char* to, const PackedWeight& weight, const float* x, int64_t rows, const RowNorm* norm, int64_t first,
    int64_t last) {
  if (weight.k == 0) return;  // `to` and `x` may be null
  const FormatKernels& kernels = kernels_of(weight);
  const int64_t k = weight.k, row_bytes = packed_row_bytes(weight.format, kernels, weight.units);
  const int64_t groups = group_count(rows, kernels.group_rows), units = filled_units(kernels, weight.units);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t group = group_begin(g, groups, rows), count = group_begin(g + 1, groups, rows) - group;
    const int64_t begin = std::max(first, group), end = std::min(last, group + count);
    if (begin >= end) continue;
    const float* from = x + begin * k;
    if (norm) {
      struct Normalized;
      float* normalized = scratch<Normalized>((end - begin) * k);
      for (int64_t row = begin; row < end; ++row) {
        const Tensor& norm_weight = row < norm->num_text_rows ? norm->text_weight : norm->audio_weight;
        rms_norm(normalized + (row - begin) * k, x + row * k, norm_weight, k, norm->eps);
      }
      from = normalized;
    }
    kernels.pack_activations(to + group * row_bytes, from, {count, begin - group, end - group}, k, units);
  }
}

void gemm_panels(
    float* out, int64_t out_stride, const PackedWeight& weight, int64_t begin, int64_t end, const char* x, int64_t rows,
    const float* residual) {
  const int64_t scale_bytes = panel_scale_bytes(weight.format, weight.units);
  kernels_of(weight).gemm(
      {out, out_stride, residual, x, weight.data + begin * weight.units * kUnitBytes,
       weight.scales ? static_cast<const char*>(weight.scales) + begin * scale_bytes : nullptr, rows,
       std::min(end * kPanel, weight.n) - begin * kPanel, weight.units});
}

void gemm(
    float* out, const PackedWeight& weight, const char* x, int64_t rows, const float* residual,
    const LowRankSum* added) {
  for_ranges(
      ceil_div(weight.n, kPanel), kPanel * weight.k * rows,
      [&](int64_t begin, int64_t end) {
        const int64_t n0 = begin * kPanel;
        gemm_panels(out + n0, weight.n, weight, begin, end, x, rows, residual ? residual + n0 : nullptr);
        if (added) added->add(out + n0, weight.n, begin, end);
      },
      panels_at_once(weight, rows));
}

}  // namespace higgs_native::cpu

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) {
  m.impl("linear", TORCH_BOX(&higgs_native::cpu::linear_registered));
  m.impl("rms_norm_linear", TORCH_BOX(&higgs_native::cpu::rms_norm_linear_cpu));
  m.impl("pack_linear", TORCH_BOX(&higgs_native::cpu::pack_linear_cpu));
}
