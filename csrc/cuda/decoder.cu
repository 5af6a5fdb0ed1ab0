// All decoder layers, from the CUDA operators.
#include "common/decoder.h"

#include <torch/csrc/stable/library.h>

#include "cuda/decoder.h"
#include "cuda/launch.h"

namespace higgs_native::cuda {

namespace {

struct Operators {
  decltype(&qkv_rope_cache_cuda) qkv_rope_cache = qkv_rope_cache_cuda;
  decltype(&linear_cuda) linear = linear_cuda;
  decltype(&dual_ffn_cuda) dual_ffn = dual_ffn_cuda;
  Tensor split_counters;  // of all layers, which run one after the other

  void attention(
      const Tensor& out, const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
      const Tensor& page_table, const Tensor& slots, const Tensor& cache_positions, double scale) const {
    attention_cuda(out, query, key_cache, value_cache, page_table, slots, cache_positions, scale, &split_counters);
  }
};

void decoder_layers_cuda(
    const Tensor& x, const Tensor& query, const Tensor& attended, std::vector<Tensor> key_caches,
    std::vector<Tensor> value_caches, std::vector<Tensor> weights, std::vector<int64_t> skips_audio, double eps,
    const Tensor& rope_table, const Tensor& page_table, const Tensor& slots, const Tensor& positions,
    const Tensor& text_positions, int64_t num_text_rows, const OptionalTensor& adapters, std::vector<Tensor> factors) {
  const DecoderLayers args = check_decoder_layers(
      x, query, attended, key_caches, value_caches, weights, skips_audio, rope_table, page_table, slots, positions,
      text_positions, num_text_rows, adapters, factors);
  const Launch launch("decoder_layers", x);
  Operators operators;
  // Large enough: each KV head, or part of its group, has at least one column of `query`.
  operators.split_counters = torch::stable::new_zeros(x, {query.numel()}, ScalarType::Int);
  run_decoder_layers(
      operators, args, x, query, attended, key_caches, value_caches, weights, skips_audio, eps, rope_table, page_table,
      slots, positions, text_positions, num_text_rows, adapters, factors);
}

}  // namespace

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY_IMPL(higgs_native, HIGGS_NATIVE_CUDA_KEY, m) {
  m.impl("decoder_layers", TORCH_BOX(&higgs_native::cuda::decoder_layers_cuda));
}
