// All decoder layers, from the CPU's operators.
#include "common/decoder.h"

#include <torch/csrc/stable/library.h>

#include "cpu/decoder.h"

namespace higgs_native::cpu {

namespace {

struct Operators {
  decltype(&qkv_rope_cache_cpu) qkv_rope_cache = qkv_rope_cache_cpu;
  decltype(&attention_cpu) attention = attention_cpu;
  decltype(&linear_cpu) linear = linear_cpu;
  decltype(&dual_ffn_cpu) dual_ffn = dual_ffn_cpu;

  static void begin_layer(const Tensor*, const Tensor*, int64_t, int64_t) {}
};

void decoder_layers_cpu(
    const Tensor& x, const Tensor& query, const Tensor& attended, std::vector<Tensor> key_caches,
    std::vector<Tensor> value_caches, std::vector<Tensor> weights, std::vector<int64_t> skips_audio, double eps,
    const Tensor& rope_table, const Tensor& page_table, const Tensor& slots, const Tensor& positions,
    const Tensor& text_positions, int64_t num_text_rows, const OptionalTensor& adapters, std::vector<Tensor> factors,
    int64_t first_kept, int64_t num_kept, const OptionalTensor& following) {
  const DecoderLayers args = check_decoder_layers(
      x, query, attended, key_caches, value_caches, weights, skips_audio, rope_table, page_table, slots, positions,
      text_positions, num_text_rows, adapters, factors, first_kept, num_kept, following);
  for (int64_t row = 0; adapters && row < args.rows; ++row) {
    const int32_t adapter = adapters->const_data_ptr<int32_t>()[row];
    HIGGS_CHECK(
        adapter >= -1 && adapter < static_cast<int32_t>(args.num_adapters), "decoder_layers: adapters[", row,
        "] must be between -1 and ", static_cast<int64_t>(args.num_adapters) - 1, ", got ", adapter);
  }
  run_decoder_layers(
      Operators(), args, x, query, attended, key_caches, value_caches, weights, skips_audio, eps, rope_table,
      page_table, slots, positions, text_positions, num_text_rows, adapters, factors);
}

}  // namespace

}  // namespace higgs_native::cpu

STABLE_TORCH_LIBRARY_IMPL(higgs_native, CPU, m) {
  m.impl("decoder_layers", TORCH_BOX(&higgs_native::cpu::decoder_layers_cpu));
}
