// Adapters (LoRA) of a linear operator: a row x with adapter i adds B_i (A_i x). A @ x is computed first, for all
// adapters; columns of B @ (A @ x) are added as soon as those of the base are computed, by the thread that computes
// them. A row's bits depend on the row and its adapter alone, as those of any linear operator do.
// Bytes moved: the factors of each adapter that has rows, once for up to 240 of them.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "args/decoder.h"
#include "cpu/linear.h"

namespace higgs_native::cpu {

// The sum of low rank of rows [first, first + rows) of a batch, which are row 0, ... of an operator.
class LowRankSum {
 public:
  // x [rows, k] are the operator's inputs, n its columns. `norm` is applied first if it is given.
  LowRankSum(
      const LowRank& low_rank, const float* x, int64_t first, int64_t rows, int64_t n, int64_t k,
      const RowNorm* norm = nullptr) {
    if (low_rank.count == 0) return;
    const int32_t* adapters = low_rank.adapters->const_data_ptr<int32_t>() + first;
    for (size_t adapter = 0; adapter < low_rank.count; ++adapter) {
      Group group = {low_rank.a(adapter, k), {}, {}, nullptr, nullptr};
      if (!group.a.data) continue;
      for (int64_t row = 0; row < rows; ++row) {
        if (adapters[row] == static_cast<int32_t>(adapter)) group.rows.push_back(row);
      }
      if (group.rows.empty()) continue;
      group.b = low_rank.b(adapter, n);
      groups_.push_back(std::move(group));
    }
    if (!groups_.empty()) compute(x, k, norm);
  }

  // Adds columns of panels [begin, end) to `out`, which points to the first of them in row 0.
  void add(float* out, int64_t out_stride, int64_t begin, int64_t end) const {
    struct Added;
    for (const Group& group : groups_) {
      const int64_t rows = group.count(), n = std::min(end * kPanel, group.b.n) - begin * kPanel;
      float* added = scratch<Added>(rows * n);
      gemm_panels(added, n, group.b, begin, end, group.packed, rows);
      for (int64_t i = 0; i < rows; ++i) {
        float* to = out + group.rows[i] * out_stride;
        for (int64_t column = 0; column < n; ++column) to[column] += added[i * n + column];
      }
    }
  }

 private:
  // The rows of an adapter.
  struct Group {
    PackedWeight a, b;
    std::vector<int64_t> rows;  // ascending
    float* sums;                // A @ x [count, a.n]
    const char* packed;         // the same, packed for B

    int64_t count() const { return static_cast<int64_t>(rows.size()); }
  };

  void compute(const float* x, int64_t k, const RowNorm* norm) {
    struct Gathered;
    struct Inputs;
    struct Sums;
    struct Packed;
    int64_t rows = 0, panels = 0, sums = 0, max_rows = 0, input_bytes = 0;
    for (const Group& group : groups_) {
      rows += group.count();
      input_bytes += group.count() * row_bytes(group.a);
      max_rows = std::max(max_rows, group.count());
      panels += ceil_div(group.a.n, kPanel);
      sums += group.count() * group.a.n;
    }
    float* gathered = scratch<Gathered>(rows * k);
    char* inputs = reinterpret_cast<char*>(scratch<Inputs>(ceil_div(input_bytes, sizeof(float))));
    std::vector<const char*> inputs_of;
    float* next_sums = scratch<Sums>(sums);
    for (Group& group : groups_) {
      int64_t text = 0;
      for (int64_t i = 0; i < group.count(); ++i) {
        std::memcpy(gathered + i * group.a.k, x + group.rows[i] * k, group.a.k * sizeof(float));
        if (norm && group.rows[i] < norm->num_text_rows) ++text;
      }
      std::optional<RowNorm> of_group;
      if (norm) of_group.emplace(RowNorm{norm->text_weight, norm->audio_weight, text, norm->eps});
      pack_rows(inputs, group.a, gathered, group.count(), of_group ? &*of_group : nullptr, 0, group.count());
      inputs_of.push_back(inputs);
      inputs += group.count() * row_bytes(group.a);
      group.sums = next_sums;
      next_sums += group.count() * group.a.n;
    }
    for_ranges(panels, kPanel * k * max_rows, [&](int64_t begin, int64_t end) {
      int64_t first = 0;
      for (size_t i = 0; i < groups_.size(); ++i) {
        const Group& group = groups_[i];
        const int64_t count = ceil_div(group.a.n, kPanel);
        const int64_t from = std::clamp<int64_t>(begin - first, 0, count),
                      to = std::clamp<int64_t>(end - first, 0, count);
        if (from < to) {
          gemm_panels(group.sums + from * kPanel, group.a.n, group.a, from, to, inputs_of[i], group.count());
        }
        first += count;
      }
    });
    int64_t bytes = 0;
    for (const Group& group : groups_) bytes += group.count() * row_bytes(group.b);
    char* packed = reinterpret_cast<char*>(scratch<Packed>(ceil_div(bytes, sizeof(float))));
    for (Group& group : groups_) {
      pack_rows(packed, group.b, group.sums, group.count(), nullptr, 0, group.count());
      group.packed = packed;
      packed += group.count() * row_bytes(group.b);
    }
  }

  static int64_t row_bytes(const PackedWeight& weight) {
    return packed_row_bytes(weight.format, kernels_of(weight), weight.units);
  }

  std::vector<Group> groups_;
};

}  // namespace higgs_native::cpu
