// out[:T] = text_table[token_ids]; out[T:] = sum over codebooks k of audio_table[k * codebook size + codes[:, k]].
//
// Layout: tables and out are row-major [rows, hidden]; sums are float32, from the first codebook to the last, as on the
// CPU.
// Threads: a block takes kThreads * kVector columns of a row, a thread kVector neighboring ones.
// Bytes: a table row per text row, one per codebook for an audio row, and the row of out. The host does not read the
// ids: a row whose id or code is outside its table is NaN.
#include "args/embedding.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cuda/launch.h"

namespace higgs_native::cuda {

namespace {

constexpr int kThreads = 128;

template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Vector {
  T value[kVector];
};

template <typename T, int kVector>
__device__ __forceinline__ void add_row(Vector<float, kVector>& sum, const T* row) {
  const auto values = *reinterpret_cast<const Vector<T, kVector>*>(row);
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum.value[i] += to_float(values.value[i]);
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads) embed_kernel(Embed args) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t row = blockIdx.x;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kVector;
  if (column >= args.hidden) return;
  Vector<float, kVector> sum = {};
  bool found = true;
  if (row < args.num_text) {
    const int64_t id = args.token_ids[row];
    found = id >= 0 && id < args.vocabulary;
    if (found) add_row<T>(sum, static_cast<const T*>(args.text_table) + id * args.hidden + column);
  } else {
    const int32_t* codes = args.codes + (row - args.num_text) * args.num_codebooks;
    const T* table = static_cast<const T*>(args.audio_table) + column;
    for (int64_t k = 0; k < args.num_codebooks; ++k) found &= codes[k] >= 0 && codes[k] < args.codebook_size;
    // No condition inside the loop, so that the loads of all rows are in flight at once.
    const int64_t num_codebooks = found ? args.num_codebooks : 0;
#pragma unroll 4
    for (int64_t k = 0; k < num_codebooks; ++k)
      add_row<T>(sum, table + (k * args.codebook_size + codes[k]) * args.hidden);
  }
  if (!found) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum.value[i] = NAN;
  }
  *reinterpret_cast<Vector<float, kVector>*>(args.out + row * args.hidden + column) = sum;
}

template <typename T, int kVector>
void launch_embed(const Launch& launch, const Embed& args) {
  const dim3 grid(
      static_cast<unsigned>(args.num_text + args.num_audio),
      static_cast<unsigned>(ceil_div(args.hidden, kThreads * kVector)));
  launch(embed_kernel<T, kVector>, grid, kThreads, 0, args);
}

void embed_cuda(
    const Tensor& out, const Tensor& token_ids, const Tensor& codes, const Tensor& text_table,
    const Tensor& audio_table) {
  const Embed args = check_embed(out, token_ids, codes, text_table, audio_table);
  if (out.numel() == 0) return;
  const Launch launch("embed", out);
  const bool vectorized =
      args.hidden % 4 == 0 && is_aligned(args.out) && is_aligned(args.text_table) && is_aligned(args.audio_table);
  with_weight_type(text_table, [&](auto* table) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(table)>>;
    vectorized ? launch_embed<T, 4>(launch, args) : launch_embed<T, 1>(launch, args);
  });
}

}  // namespace

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY_IMPL(higgs_native, HIGGS_NATIVE_CUDA_KEY, m) {
  m.impl("embed", TORCH_BOX(&higgs_native::cuda::embed_cuda));
}
