// out[:T] = text_table[token_ids]; out[T:] = sum over codebooks k of audio_table[k * codebook size + codes[:, k]].
//
// Tables are row-major [rows, hidden]. Bytes moved: one row for a text row, one row a codebook for an audio row; a thread
// takes whole rows.
#include <torch/csrc/stable/library.h>

#include "common/checks.h"
#include "cpu/linear.h"

namespace higgs_native::cpu {

namespace {

float widen(float x) { return x; }

float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float f;
  static_assert(sizeof f == sizeof bits);
  __builtin_memcpy(&f, &bits, sizeof f);
  return f;
}

template <typename T>
void add_row(float* out, const T* row, int64_t hidden) {
  for (int64_t i = 0; i < hidden; ++i) out[i] += widen(row[i]);
}

void embed_cpu(
    const Tensor& out, const Tensor& token_ids, const Tensor& codes, const Tensor& text_table,
    const Tensor& audio_table) {
  check_weight("embed", "text_table", text_table, {kAnySize, kAnySize});
  const int64_t vocabulary = text_table.size(0), hidden = text_table.size(1);
  check_tensor("embed", "audio_table", audio_table, text_table.scalar_type(), {kAnySize, hidden});
  check_tensor("embed", "token_ids", token_ids, ScalarType::Int, {kAnySize});
  check_tensor("embed", "codes", codes, ScalarType::Int, {kAnySize, kAnySize});
  const int64_t num_text = token_ids.size(0), num_audio = codes.size(0), codebooks = codes.size(1);
  check_tensor("embed", "out", out, ScalarType::Float, {num_text + num_audio, hidden});
  STD_TORCH_CHECK(
      num_audio == 0 || (codebooks > 0 && audio_table.size(0) % codebooks == 0), "embed: audio_table has ",
      audio_table.size(0), " rows, no multiple of the ", codebooks, " codebooks of codes");
  const int64_t codebook_size = codebooks > 0 ? audio_table.size(0) / codebooks : 0;
  const int32_t* ids = token_ids.const_data_ptr<int32_t>();
  const int32_t* frames = codes.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < num_text; ++i) {
    STD_TORCH_CHECK(
        ids[i] >= 0 && ids[i] < vocabulary, "embed: token_ids[", i, "] must be between 0 and ", vocabulary - 1,
        ", got ", ids[i]);
  }
  for (int64_t i = 0; i < num_audio * codebooks; ++i) {
    STD_TORCH_CHECK(
        frames[i] >= 0 && frames[i] < codebook_size, "embed: codes[", i / codebooks, ", ", i % codebooks,
        "] must be between 0 and ", codebook_size - 1, ", got ", frames[i]);
  }
  float* to = out.mutable_data_ptr<float>();
  with_weight_type(text_table, [&](auto* text) {
    auto* audio = static_cast<decltype(text)>(audio_table.const_data_ptr());
    for_ranges(num_text + num_audio, hidden * codebooks, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        float* row_out = to + row * hidden;
        for (int64_t i = 0; i < hidden; ++i) row_out[i] = 0;
        if (row < num_text) {
          add_row(row_out, text + ids[row] * hidden, hidden);
          continue;
        }
        for (int64_t k = 0; k < codebooks; ++k) {
          const int64_t code = frames[(row - num_text) * codebooks + k];
          add_row(row_out, audio + (k * codebook_size + code) * hidden, hidden);
        }
      }
    });
  });
}

}  // namespace

}  // namespace higgs_native::cpu

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) { m.impl("embed", TORCH_BOX(&higgs_native::cpu::embed_cpu)); }
