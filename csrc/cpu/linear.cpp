// out = x @ weight.T + residual, and out = rms_norm(x) @ weight.T, with packed weights. Threads take chunks of a
// weight's panels; the inner kernels are in linear_kernels.cpp.
// Bytes moved: the weight, once for up to 240 rows.
#include "cpu/linear.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>

#include "args/linear.h"
#include "cpu/decoder.h"

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

// Writes a row of `bytes` bytes as row `r` of a panel of `units` units; zeros if `from` is null.
void pack_row(char* packed, int64_t r, const char* from, int64_t bytes, int64_t units) {
  char* to = packed + r * 4;
  int64_t u = 0;
  if (from) {
    for (; u < bytes / 4; ++u) std::memcpy(to + u * kUnitBytes, from + u * 4, 4);
    if (bytes % 4) {
      std::memset(to + u * kUnitBytes, 0, 4);
      std::memcpy(to + u * kUnitBytes, from + u * 4, bytes % 4);
      ++u;
    }
  }
  for (; u < units; ++u) std::memset(to + u * kUnitBytes, 0, 4);
}

// Writes a row of 4-bit integers as row `r` of a panel, eight per word: four in the low halves of its bytes, then four
// in the high halves.
void pack_row_int4(char* packed, int64_t r, const int8_t* from, int64_t k, int64_t units) {
  for (int64_t u = 0; u < units; ++u) {
    unsigned char bytes[4];
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t low = 8 * u + i, high = low + 4;
      const int first = from && low < k ? from[low] + 8 : 8;
      const int second = from && high < k ? from[high] + 8 : 8;
      bytes[i] = static_cast<unsigned char>((first & 15) | (second & 15) << 4);
    }
    std::memcpy(packed + u * kUnitBytes + r * 4, bytes, 4);
  }
}

void pack_linear_cpu(const Tensor& packed, const Tensor& weight, int64_t first_row, int64_t panel_rows) {
  const PackLinear p = check_pack_linear(packed, weight, first_row, panel_rows);
  for_ranges(p.panels, p.panel_rows * p.k, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      char* target = p.packed + panel * p.units * kUnitBytes;
      for (int64_t r = 0; r < p.panel_rows; ++r) {
        const int64_t row = panel * p.panel_rows + r, row_bytes = p.k * p.element_bytes;
        const char* source = row < p.n ? p.weight + row * row_bytes : nullptr;
        if (p.format == WeightFormat::int4) {
          pack_row_int4(target, p.first_row + r, reinterpret_cast<const int8_t*>(source), p.k, p.units);
        } else {
          pack_row(target, p.first_row + r, source, row_bytes, p.units);
        }
      }
    }
  });
}

void normalize_row(float* to, const float* x, int64_t k, int64_t row, const RowNorm& norm) {
  const LinearKernels& kernels = linear_kernels();
  const Tensor& w = row < norm.num_text_rows ? norm.text_weight : norm.audio_weight;
  switch (number_type(w)) {
    case NumberType::float32:
      kernels.rms_norm_f32(to, x, static_cast<const float*>(w.const_data_ptr()), k, norm.eps);
      break;
    case NumberType::bfloat16:
      kernels.rms_norm_bf16(to, x, static_cast<const bfloat16*>(w.const_data_ptr()), k, norm.eps);
      break;
    case NumberType::float16:
      kernels.rms_norm_f16(to, x, static_cast<const float16*>(w.const_data_ptr()), k, norm.eps);
      break;
  }
}

}  // namespace

void linear_cpu(
    const Tensor& out, const Tensor& x, const Tensor& weight, const OptionalTensor& scales,
    const OptionalTensor& residual) {
  const Linear args = check_linear(out, x, weight, scales, residual);
  if (args.rows == 0) return;
  struct Activations;
  gemm(args.out, args.weight, pack_activations<Activations>(args.weight, args.x, args.rows), args.rows, args.residual);
}

int64_t packed_f32_bytes(int64_t n, int64_t k) { return ceil_div(n, kPanel) * k * kUnitBytes; }

void pack_f32(char* packed, const float* weight, int64_t n, int64_t k) {
  for (int64_t row = 0; row < ceil_div(n, kPanel) * kPanel; ++row) {
    const char* from = row < n ? reinterpret_cast<const char*>(weight + row * k) : nullptr;
    pack_row(packed + row / kPanel * k * kUnitBytes, row % kPanel, from, k * 4, k);
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
      for (int64_t row = begin; row < end; ++row)
        normalize_row(normalized + (row - begin) * k, x + row * k, k, row, *norm);
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

void gemm(float* out, const PackedWeight& weight, const char* x, int64_t rows, const float* residual) {
  for_ranges(
      ceil_div(weight.n, kPanel), kPanel * weight.k * rows,
      [&](int64_t begin, int64_t end) {
        const int64_t n0 = begin * kPanel;
        gemm_panels(out + n0, weight.n, weight, begin, end, x, rows, residual ? residual + n0 : nullptr);
      },
      kPanelsAtOnce);
}

}  // namespace higgs_native::cpu

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) {
  m.impl("linear", TORCH_BOX(&higgs_native::cpu::linear_cpu));
  m.impl("rms_norm_linear", TORCH_BOX(&higgs_native::cpu::rms_norm_linear_cpu));
  m.impl("pack_linear", TORCH_BOX(&higgs_native::cpu::pack_linear_cpu));
}
