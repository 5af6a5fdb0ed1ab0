// The checked arguments of embed.
#pragma once

#include "args/checks.h"

namespace higgs_native {

// out[:T] = text_table[token_ids]; out[T:] = sum over codebooks k of audio_table[k * codebook size + codes[:, k]].
struct Embed {
  float* out;                // [num_text + num_audio, hidden]
  const int32_t* token_ids;  // [num_text]
  const int32_t* codes;      // [num_audio, num_codebooks]
  const void* text_table;    // [vocabulary, hidden]
  const void* audio_table;   // [num_codebooks * codebook_size, hidden]
  int64_t num_text, num_audio, num_codebooks, vocabulary, codebook_size, hidden;
};

// The backend checks the ids and the codes themselves.
inline Embed check_embed(
    const Tensor& out, const Tensor& token_ids, const Tensor& codes, const Tensor& text_table,
    const Tensor& audio_table) {
  const char* op = "embed";
  check_devices(
      op, {{"out", out},
           {"token_ids", token_ids},
           {"codes", codes},
           {"text_table", text_table},
           {"audio_table", audio_table}});
  check_weight(op, "text_table", text_table, {kAnySize, kAnySize});
  const int64_t vocabulary = text_table.size(0), hidden = text_table.size(1);
  check_tensor(op, "audio_table", audio_table, text_table.scalar_type(), {kAnySize, hidden});
  check_tensor(op, "token_ids", token_ids, ScalarType::Int, {kAnySize});
  check_tensor(op, "codes", codes, ScalarType::Int, {kAnySize, kAnySize});
  const int64_t num_text = token_ids.size(0), num_audio = codes.size(0), num_codebooks = codes.size(1);
  check_tensor(op, "out", out, ScalarType::Float, {num_text + num_audio, hidden});
  HIGGS_CHECK(
      num_audio == 0 || num_codebooks > 0, op, ": codes must have at least one codebook, got ", shape_text(codes));
  HIGGS_CHECK(
      num_audio == 0 || audio_table.size(0) % num_codebooks == 0, op, ": audio_table must have a multiple of ",
      num_codebooks, " rows, the codebooks of codes, got ", audio_table.size(0));
  return {
      out.mutable_data_ptr<float>(),
      token_ids.const_data_ptr<int32_t>(),
      codes.const_data_ptr<int32_t>(),
      text_table.const_data_ptr(),
      audio_table.const_data_ptr(),
      num_text,
      num_audio,
      num_codebooks,
      vocabulary,
      num_codebooks > 0 ? audio_table.size(0) / num_codebooks : 0,
      hidden};
}

}  // namespace higgs_native
