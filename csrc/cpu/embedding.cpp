// out[:T] = text_table[token_ids]; out[T:] = sum over codebooks k of audio_table[k * codebook size + codes[:, k]].
//
// Tables are row-major [rows, hidden]. A thread takes whole rows.
// Bytes moved: one table row per text row, one per codebook for an audio row.
#include "args/embedding.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cpu/linear.h"

namespace higgs_native::cpu {

namespace {

float widen(float x) { return x; }

float widen(bfloat16 x) { return torch::headeronly::detail::f32_from_bits(x.bits); }

float widen(float16 x) { return torch::headeronly::Half(x.bits, torch::headeronly::Half::from_bits()); }

template <typename T>
void add_row(float* out, const T* row, int64_t hidden) {
  for (int64_t i = 0; i < hidden; ++i) out[i] += widen(row[i]);
}

void embed_cpu(
    const Tensor& out, const Tensor& token_ids, const Tensor& codes, const Tensor& text_table,
    const Tensor& audio_table) {
  const Embed args = check_embed(out, token_ids, codes, text_table, audio_table);
  const int64_t num_codebooks = args.num_codebooks, hidden = args.hidden;
  for (int64_t i = 0; i < args.num_text; ++i) {
    HIGGS_CHECK(
        args.token_ids[i] >= 0 && args.token_ids[i] < args.vocabulary, "embed: token_ids[", i,
        "] must be between 0 and ", args.vocabulary - 1, ", got ", args.token_ids[i]);
  }
  for (int64_t i = 0; i < args.num_audio * num_codebooks; ++i) {
    HIGGS_CHECK(
        args.codes[i] >= 0 && args.codes[i] < args.codebook_size, "embed: codes[", i / num_codebooks, ", ",
        i % num_codebooks, "] must be between 0 and ", args.codebook_size - 1, ", got ", args.codes[i]);
  }
  with_weight_type(text_table, [&](auto* text) {
    auto* audio = static_cast<decltype(text)>(args.audio_table);
    for_ranges(args.num_text + args.num_audio, hidden * num_codebooks, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        float* row_out = args.out + row * hidden;
        for (int64_t i = 0; i < hidden; ++i) row_out[i] = 0;
        if (row < args.num_text) {
          add_row(row_out, text + args.token_ids[row] * hidden, hidden);
          continue;
        }
        for (int64_t k = 0; k < num_codebooks; ++k) {
          const int64_t code = args.codes[(row - args.num_text) * num_codebooks + k];
          add_row(row_out, audio + (k * args.codebook_size + code) * hidden, hidden);
        }
      }
    });
  });
}

}  // namespace

}  // namespace higgs_native::cpu

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) { m.impl("embed", TORCH_BOX(&higgs_native::cpu::embed_cpu)); }
