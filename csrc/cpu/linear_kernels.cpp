// GEMM with packed weights, out[r][n] = sum_k x[r][k] * weight[n][k]: by tiles where the set has them for the
// weights' format (linear_tiles.h), else by vectors (linear_vectors.h).
// Bytes moved: the weight, once for 240 rows, or 512 by tiles.
#include "cpu/linear_kernels.h"

#include "cpu/linear_formats.h"
#include "cpu/linear_tiles.h"
#include "cpu/linear_vectors.h"

namespace higgs_native::cpu::HIGGS_NATIVE_ISA {

namespace {

template <typename F>
constexpr FormatKernels format_kernels() {
  return {kGroupRows, F::kPackedUnitBytes, 1, 1, F::template pack<Interleaved>, gemm_vectors<F>};
}

// The kernels of a format that tiles can multiply, if the set has such tiles.
template <typename F, typename T = Tiles>
constexpr FormatKernels tile_kernels() {
  if constexpr (is_integer(F::kFormat) ? kHasByteTiles : kHasPairTiles) {
    using Order = TileOrder<T::kRowsInPairs>::Type;
    return {kTileRows, F::kPackedUnitBytes, kTileUnits<F>, kBlockPanels, F::template pack<Order>, gemm_tiles<T, F>};
  } else {
    return format_kernels<F>();
  }
}

// ---- RMSNorm before a linear operator, SiLU after it

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
    const Vec g = load(gate + i, n - i), u = load(up + i, n - i);
    store(out + i, g / (splat(1.f) + exp(-g)) * u, n - i);
  }
}

}  // namespace

const LinearKernels linear_kernels = {
    {format_kernels<Float32>(), tile_kernels<BFloat16>(), format_kernels<Float16>(), tile_kernels<Fp8>(),
     tile_kernels<Int8>(), tile_kernels<Int4>()},
    rms_norm<float>,
    rms_norm<bfloat16>,
    rms_norm<float16>,
    silu_mul,
};

}  // namespace higgs_native::cpu::HIGGS_NATIVE_ISA
