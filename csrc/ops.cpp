// The schema of every operator, one block per family. Each is implemented under the same name and arguments for the CPU
// (csrc/cpu/<family>.cpp) and for CUDA (csrc/cuda/<family>.cu); csrc/args/<family>.h checks its arguments. Shapes and
// meaning: higgs_native/ops/<family>.py.
//
// Operators write into tensors that the caller owns (marked `!`) and return nothing. Some allocate scratch memory on
// CUDA.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(higgs_native, m) {
  // embedding
  m.def("embed(Tensor(a!) out, Tensor token_ids, Tensor codes, Tensor text_table, Tensor audio_table) -> ()");

  // linear
  m.def("pack_linear(Tensor(a!) packed, Tensor weight, int first_row, int panel_rows) -> ()");
  m.def("linear(Tensor(a!) out, Tensor x, Tensor weight, Tensor? scales, Tensor? residual) -> ()");
  m.def(
      "rms_norm_linear(Tensor(a!) out, Tensor x, Tensor norm_weight, float eps, Tensor weight, Tensor? scales) -> ()");

  // quantization
  m.def("quantize_linear(Tensor(a!) integers, Tensor(b!) scales, Tensor weight, int bits, bool clip) -> ()");

  // attention
  m.def(
      "qkv_rope_cache(Tensor(a!) query, Tensor(b!) key_cache, Tensor(c!) value_cache, Tensor x, Tensor text_norm, "
      "Tensor audio_norm, float eps, Tensor qkv_weight, Tensor? qkv_scales, Tensor rope_table, Tensor page_table, "
      "Tensor slots, Tensor positions, Tensor cache_positions, int num_text_rows, Tensor? query_norm=None, "
      "Tensor? key_norm=None) -> ()");
  m.def(
      "attention(Tensor(a!) out, Tensor query, Tensor key_cache, Tensor value_cache, Tensor page_table, Tensor slots, "
      "Tensor cache_positions, float scale) -> ()");

  // dual_ffn
  m.def(
      "dual_ffn(Tensor(a!) out, Tensor x, Tensor text_norm, Tensor text_gate_up, Tensor? text_gate_up_scales, "
      "Tensor text_down, Tensor? text_down_scales, Tensor audio_norm, Tensor audio_gate_up, "
      "Tensor? audio_gate_up_scales, Tensor audio_down, Tensor? audio_down_scales, float eps, int num_text_rows) -> "
      "()");

  // decoder
  m.def(
      "decoder_layers(Tensor(a!) x, Tensor(b!) query, Tensor(c!) attended, Tensor(d!)[] key_caches, "
      "Tensor(e!)[] value_caches, Tensor[] weights, int[] skips_audio, float eps, Tensor rope_table, "
      "Tensor page_table, Tensor slots, Tensor positions, Tensor text_positions, int num_text_rows, Tensor? adapters, "
      "Tensor[] factors, int first_kept, int num_kept, Tensor? following=None) -> ()");

  // sampling
  m.def(
      "sample_audio_frame(Tensor(a!) codes, Tensor(b!) active, Tensor(c!) positions, Tensor(d!) state, "
      "Tensor(e!) history, Tensor logits, Tensor slots, Tensor temperature, Tensor top_k, Tensor top_p, "
      "Tensor ras_win_len, Tensor ras_win_max_num_repeat, Tensor seed, int bos_id, int eos_id) -> ()");
  m.def(
      "sample_text(Tensor(a!) tokens, Tensor logits, Tensor slots, Tensor steps, Tensor temperature, Tensor top_k, "
      "Tensor top_p, Tensor seed) -> ()");
  m.def("process_logits(Tensor(a!) out, Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p) -> ()");

  // delay_pattern
  m.def("delay_pattern_build(Tensor(a!) out, Tensor codes, int bos_id, int eos_id) -> ()");
  m.def("delay_pattern_revert(Tensor(a!) out, Tensor delayed) -> ()");

  // audio_tokenizer
  m.def("snake(Tensor(a!) out, Tensor x, Tensor alpha) -> ()");
  m.def("conv1d(Tensor(a!) out, Tensor x, Tensor weight, Tensor bias, int first=0) -> ()");
  m.def(
      "residual_unit(Tensor(a!) out, Tensor x, Tensor alpha1, Tensor weight1, Tensor bias1, Tensor alpha2, "
      "Tensor weight2, Tensor bias2, int dilation, int first=0) -> ()");
  m.def(
      "snake_conv_transpose1d(Tensor(a!) out, Tensor x, Tensor alpha, Tensor weight, Tensor bias, int first=0) -> ()");
  m.def(
      "acoustic_decoder(Tensor(a!) audio, Tensor(b!) state, Tensor latent, Tensor[] weights, int[] dilations, "
      "int frames_before, bool is_last) -> ()");
  m.def(
      "rvq_encode(Tensor(a!) codes, Tensor embeddings, Tensor codebooks, Tensor in_weight, Tensor in_bias, "
      "Tensor out_weight, Tensor out_bias) -> ()");
  m.def("rvq_decode(Tensor(a!) out, Tensor codes, Tensor table, Tensor bias) -> ()");
}
