// GEMM with packed weights: out[r][n] = sum_k x[r][k] * weight[n][k], with RMSNorm of x before and an epilogue after.
//
// A block takes one or two panels of the weight (common/weight_format.h) and 4, 8, 16, 32 or 64 rows of x. Its warps share
// the depth k, taking K-steps in turn, and their sums are added in the order of the warps: the bits of an output depend
// on its row of x and the weight alone, not on the batch or on timing. With more than 64 rows and weights of 16 bits, a
// block takes 128 weight rows and 128 rows of x; on GPUs that multiply by warpgroups, also in fp8, 64 to 192 rows from 9
// rows on. Weights are read once for all rows of the block, and the loads of the next steps are in flight while one is
// multiplied.
//   bfloat16   x is rounded to bfloat16, sums are float32;
//   float16    the same in float16: x must stay below 65520 after multiplication with the norm's weight;
//   fp8        as bfloat16: e4m3 is widened to it in registers;
//   int8/int4  x is rounded to 8 bits with a scale per row and group of 128 columns; sums within a group are exact;
//   float32    plain multiply-adds: for comparisons, not for speed.
// RMSNorm scales a row as a whole, so it is applied to the finished sums; its sum of squares is taken while x is
// loaded.
// Bytes moved: the weight, once from memory; other blocks of rows find it in L2. Each block reads x from L2.
//
// linear/ has the parts of the kernels: weight_formats.h, activations.h, products.h, mainloop.h, wide_mainloop.h,
// warpgroup_mainloop.h and epilogues.h. low_rank.h has the kernels of adapters, whose sums are added before the
// epilogue. This file chooses and launches the kernels.
#include "cuda/linear.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <bit>

#include "args/linear.h"
#include "cuda/decoder.h"
#include "cuda/linear/low_rank.h"
#include "cuda/linear/warpgroup_mainloop.h"

namespace higgs_native::cuda {

namespace {

template <WeightFormat F, int kPanels, int kRows, bool kPacked>
void launch_gemm(const Launch& launch, const Gemm& p, const PackedActivations& packed, int steps, int pair_distance) {
  const int64_t row_blocks = ceil_div(p.rows, kRows);
  const int64_t panel_blocks = ceil_div(ceil_div(p.weight.n, kPanel), kPanels);
  // Blocks that round their rows first take panels in turn, so that a multiprocessor rounds the rows once.
  const int64_t most =
      kKeepsActivations<F, kPacked> ? launch.multiprocessors() * kBlocksAtOnce<F, kPacked> : panel_blocks;
  // Blocks that share a panel are neighbors, so that all but the first find it in L2.
  const dim3 grid(static_cast<unsigned>(row_blocks), static_cast<unsigned>(std::min(panel_blocks, most)));
  const size_t activations = kKeepsActivations<F, kPacked> ? SharedActivations<F>::bytes(steps, p.rows) : 0;
  launch(
      gemm_kernel<F, kPanels, kRows, kPacked>, grid, kThreads, kSumBytes<F, kPanels, kRows> + activations, p, packed,
      steps, pair_distance, launch.is_first());
}

template <WeightFormat F>
void launch_wide_gemm(
    const Launch& launch, const Gemm& p, const PackedActivations& packed, int steps, int pair_distance) {
  const dim3 grid(
      static_cast<unsigned>(ceil_div(p.rows, kWideRows)),
      static_cast<unsigned>(ceil_div(ceil_div(p.weight.n, kPanel), kWidePanels)));
  launch(wide_gemm_kernel<F>, grid, kThreads, kWideBytes<F>, p, packed, steps, pair_distance);
}

// Words of x in tiles of rows and K-steps of the format.
template <WeightFormat F>
int64_t words_of_tiles(int64_t tiles, int64_t steps) {
  return tiles * steps * Step<F>::kWords * kWarp;
}

// Blocks along the depth: as many as fill the multiprocessors, where each keeps enough K-steps to pay for its sums in
// memory, which few rows have few of.
int64_t blocks_of_depth(const Launch& launch, int64_t blocks, int rows, int steps) {
  constexpr int kMinDepth = 128;
  const int min_steps = 2 * rows > kWideRows ? 64 : 32;
  if (steps < kMinDepth) return 1;
  int64_t of_depth = 1;
  while (2 * of_depth <= kShares && 2 * of_depth * blocks <= launch.multiprocessors() &&
         2 * of_depth * min_steps <= steps) {
    of_depth *= 2;
  }
  return of_depth;
}

// Products of warpgroups are for more than 8 rows and weights of 16 bits or fp8. Up to 64 rows they wait for memory, and
// read less from L2 than other kernels, where their large blocks keep most multiprocessors busy.
bool by_warpgroups(const Launch& launch, const Gemm& p) {
  const bool of_16_bits = !is_integer(p.weight.format) && p.weight.format != WeightFormat::f32;
  if (!of_16_bits || p.rows <= kRowTile || !launch.has_warpgroups()) return false;
  const int64_t blocks = ceil_div(ceil_div(p.weight.n, kPanel), kWidePanels);
  const int64_t steps = ceil_div(p.weight.units, Step<WeightFormat::bf16>::kUnits);
  static_assert(Step<WeightFormat::bf16>::kUnits == Step<WeightFormat::fp8>::kUnits);
  const int64_t all = blocks * blocks_of_depth(launch, blocks, p.rows, static_cast<int>(steps));
  return 2 * p.rows > kWideRows || 3 * all >= 2 * launch.multiprocessors();
}

// Rounds and packs x in so many tiles. The result owns the memory of `packed`.
template <WeightFormat F, bool kForWarpgroups>
Tensor pack_activations(
    const Launch& launch, const Gemm& p, PackedActivations& packed, const Tensor& like, int64_t tiles, int steps) {
  using S = Step<F>;
  const int64_t words = words_of_tiles<F>(tiles, steps), rows = tiles * kRowTile;
  const int64_t scales = S::kInteger ? rows * steps : 0;
  const int64_t zero_corrections = F == WeightFormat::int4 ? rows * steps : 0;
  Tensor memory = torch::stable::new_empty(like, {words + scales + zero_corrections + rows}, ScalarType::Int);
  packed.words = static_cast<uint32_t*>(memory.mutable_data_ptr());
  packed.scales = reinterpret_cast<float*>(packed.words + words);
  packed.zero_corrections = reinterpret_cast<int32_t*>(packed.scales + scales);
  packed.norm_factors = reinterpret_cast<float*>(packed.zero_corrections + zero_corrections);
  // One block per multiprocessor, but at least one K-step per warp; and one more per tile for the norm.
  const int64_t shares = std::min(ceil_div(steps, kWarps), ceil_div(launch.multiprocessors(), tiles));
  launch(
      pack_activations_kernel<F, kForWarpgroups>, dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(shares + 1)),
      kThreads, 0, p, packed, steps, launch.is_first());
  return memory;
}

template <WeightFormat F, int kTiles>
void launch_warpgroup_gemm(
    const Launch& launch, const Gemm& p, const PackedActivations& packed, const Tensor& like, int steps,
    int pair_distance) {
  const int64_t row_blocks = ceil_div(p.rows, kTiles * kRowTile), panels = ceil_div(p.weight.n, kPanel);
  const int64_t panel_blocks = ceil_div(panels, kWidePanels), tiles = ceil_div(p.rows, kRowTile);
  // The block that has the whole sums packs its outputs.
  const int64_t of_depth = p.packed_out ? 1 : blocks_of_depth(launch, row_blocks * panel_blocks, p.rows, steps);
  ShareSums shares;
  Tensor memory;
  if (of_depth > 1) {
    memory = torch::stable::new_empty(like, {kShares * panels * tiles * 2 * kWarp * 4}, ScalarType::Float);
    shares = {static_cast<float4*>(memory.mutable_data_ptr()), static_cast<int>(panels), static_cast<int>(tiles)};
  }
  const auto grid = [](int64_t x, int64_t y, int64_t z) {
    return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
  };
  launch(
      warpgroup_gemm_kernel<F, kTiles>, grid(row_blocks, panel_blocks, of_depth), kThreads, kWarpgroupBytes<F, kTiles>,
      p, packed, steps, pair_distance, shares);
  if (of_depth == 1) return;
  launch(
      finish_shares_kernel<F>, grid(ceil_div(tiles, kFinishedTiles), panel_blocks, 1), kThreads, 0, p, packed, shares,
      pair_distance);
}

template <WeightFormat F>
void gemm_by_warpgroups(const Launch& launch, const Gemm& p, const Tensor& like, int steps, int pair_distance) {
  PackedActivations packed = {p.packed_x};
  Gemm without_next = p;
  without_next.next = {};
  Tensor memory;
  if (!packed.words) {
    memory = pack_activations<F, true>(launch, without_next, packed, like, ceil_div(p.rows, kRowTile), steps);
  }
  // Larger blocks read weights fewer times, where they are fewer. For fp8 they would not have the registers.
  constexpr int kManyTiles = F == WeightFormat::fp8 ? kWideTiles : kWideTiles * 3 / 2;
  const bool larger = ceil_div(p.rows, kManyTiles * kRowTile) < ceil_div(p.rows, kWideRows);
  auto* run = 2 * p.rows <= kWideRows ? launch_warpgroup_gemm<F, kWideTiles / 2>
              : larger                ? launch_warpgroup_gemm<F, kManyTiles>
                                      : launch_warpgroup_gemm<F, kWideTiles>;
  run(launch, p, packed, like, steps, pair_distance);
}

template <WeightFormat F>
void gemm_of_format(const Launch& launch, const Gemm& p, const Tensor& like, int pair_distance) {
  using S = Step<F>;
  const int steps = static_cast<int>(ceil_div(p.weight.units, S::kUnits));
  const int64_t panels = ceil_div(p.weight.n, kPanel);
  const bool two_panels = pair_distance > 0 || panels >= 2 * launch.multiprocessors();
  // A block has 99 KB of shared memory on every GPU, and needs part of it for its sums. No published model has so many
  // columns that this is too little.
  constexpr size_t kMaxActivationBytes = 88 << 10;
  static_assert(kMaxActivationBytes / (SharedActivations<F>::kRowWords * 16) < 8192, "see Gemm::inverse_of_rows");
  const bool fits = !S::kInteger || SharedActivations<F>::bytes(steps, p.rows) <= kMaxActivationBytes;
  if (F == WeightFormat::f32 || (p.rows <= kRowTile && fits)) {
    auto* run = two_panels ? launch_gemm<F, 2, kRowTile, false> : launch_gemm<F, 1, kRowTile, false>;
    if constexpr (S::kInteger) {
      if (p.rows <= kHalfTile) {
        run = two_panels ? launch_gemm<F, 2, kHalfTile, false> : launch_gemm<F, 1, kHalfTile, false>;
      }
    }
    run(launch, p, PackedActivations(), steps, pair_distance);
    return;
  }
  if constexpr (F != WeightFormat::f32 && !S::kInteger) {
    if (by_warpgroups(launch, p)) return gemm_by_warpgroups<F>(launch, p, like, steps, pair_distance);
  }
  if constexpr (F != WeightFormat::f32) {
    // Registers limit the rows of a block: they hold the sums, and separate integer sums for integer weights.
    constexpr int kTilesOfPair = S::kInteger ? 2 : F == WeightFormat::fp8 ? 4 : 8;
    constexpr int kTilesOfOne = std::max(4, kTilesOfPair);
    // Larger blocks read less from L2, which limits many rows, unless a third of the multiprocessors would be idle.
    const int64_t pairs = ceil_div(panels, 2) * ceil_div(p.rows, kTilesOfPair * kRowTile);
    const bool many = p.rows > 4 * kRowTile, fills = two_panels || 3 * pairs >= 2 * launch.multiprocessors();
    const bool pair = pair_distance > 0 || (!S::kInteger && many && fills);
    // Many rows in 16 bits, unless the last wave of wide blocks would leave more than two fifths of all waves idle.
    const int64_t wide_blocks = ceil_div(panels, kWidePanels) * ceil_div(p.rows, kWideRows);
    const int64_t waves = ceil_div(wide_blocks, launch.multiprocessors());
    constexpr bool kHasWide = F == WeightFormat::bf16 || F == WeightFormat::f16;
    const bool wide = kHasWide && 2 * p.rows > kWideRows && 5 * wide_blocks >= 3 * waves * launch.multiprocessors();
    const int tiles_of_block = wide ? 1 : pair ? kTilesOfPair : many ? kTilesOfOne : 4;
    const int64_t tiles = ceil_div(p.rows, tiles_of_block * kRowTile) * tiles_of_block;
    Gemm without_next = p;
    without_next.next = {};  // these launches wait for L2, not for memory
    PackedActivations packed;
    const Tensor memory = pack_activations<F, false>(launch, without_next, packed, like, tiles, steps);
    if constexpr (kHasWide) {
      if (wide) return launch_wide_gemm<F>(launch, without_next, packed, steps, pair_distance);
    }
    auto* run = pair   ? launch_gemm<F, 2, kTilesOfPair * kRowTile, true>
                : many ? launch_gemm<F, 1, kTilesOfOne * kRowTile, true>
                       : launch_gemm<F, 1, 4 * kRowTile, true>;
    run(launch, without_next, packed, steps, pair_distance);
  }
}

// `pair_distance`: panels between the halves of a head that a block takes together; 0 if it takes neighbors.
void dispatch_gemm(const Launch& launch, const Gemm& p, const Tensor& like, int pair_distance) {
  switch (p.weight.format) {
    case WeightFormat::f32: return gemm_of_format<WeightFormat::f32>(launch, p, like, pair_distance);
    case WeightFormat::bf16: return gemm_of_format<WeightFormat::bf16>(launch, p, like, pair_distance);
    case WeightFormat::f16: return gemm_of_format<WeightFormat::f16>(launch, p, like, pair_distance);
    case WeightFormat::fp8: return gemm_of_format<WeightFormat::fp8>(launch, p, like, pair_distance);
    case WeightFormat::int8: return gemm_of_format<WeightFormat::int8>(launch, p, like, pair_distance);
    case WeightFormat::int4: return gemm_of_format<WeightFormat::int4>(launch, p, like, pair_distance);
  }
}

// For heads that are normalized, which needs the whole head, or whose halves lie in different blocks: the sums go
// through memory, and rope_kernel finishes them.
void gemm_then_rope(const Launch& launch, const Gemm& p, const Tensor& like) {
  const Tensor projected = torch::stable::new_empty(like, {p.rows, p.weight.n}, ScalarType::Float);
  Gemm plain = p;
  plain.epilogue = Epilogue::kResidual;
  plain.out = projected.mutable_data_ptr<float>();
  dispatch_gemm(launch, plain, like, 0);
  const int n = static_cast<int>(p.weight.n);
  const int64_t heads = static_cast<int64_t>(p.rows) * (n / p.rope.head_dim);
  launch(
      rope_kernel, dim3(static_cast<unsigned>(ceil_div(heads, kWarps))), kThreads, 0, p.rope, plain.out, n, p.rows,
      p.norm.type, p.norm.eps);
}

// A thread packs one word.
__global__ void __launch_bounds__(kThreads) pack_linear_kernel(PackLinear p) {
  wait_for_earlier_launches();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t r = i % p.panel_rows, unit = i / p.panel_rows % p.units, panel = i / p.panel_rows / p.units;
  if (panel >= p.panels) return;
  const int64_t row = panel * p.panel_rows + r;
  uint8_t bytes[4];
  for (int j = 0; j < 4; ++j) {
    if (p.format == WeightFormat::int4) {
      const int64_t low = 8 * unit + j, high = low + 4;
      const auto* from = reinterpret_cast<const int8_t*>(p.weight) + row * p.k;
      const int first = row < p.n && low < p.k ? from[low] + 8 : 8;
      const int second = row < p.n && high < p.k ? from[high] + 8 : 8;
      bytes[j] = static_cast<uint8_t>((first & 15) | (second & 15) << 4);
    } else {
      const int64_t row_bytes = p.k * p.element_bytes, at = 4 * unit + j;
      bytes[j] = row < p.n && at < row_bytes ? static_cast<uint8_t>(p.weight[row * row_bytes + at]) : 0;
    }
  }
  memcpy(p.packed + (panel * p.units + unit) * kUnitBytes + (p.first_row + r) * 4, bytes, 4);
}

void pack_linear_cuda(const Tensor& packed, const Tensor& weight, int64_t first_row, int64_t panel_rows) {
  const PackLinear p = check_pack_linear(packed, weight, first_row, panel_rows);
  const int64_t words = p.panels * p.panel_rows * p.units;
  if (words == 0) return;
  Launch launch("pack_linear", packed);
  launch(pack_linear_kernel, dim3(static_cast<unsigned>(ceil_div(words, kThreads))), kThreads, 0, p);
}

// The operator `linear`, which has no adapters.
void linear_registered(
    const Tensor& out, const Tensor& x, const Tensor& weight, const OptionalTensor& scales,
    const OptionalTensor& residual) {
  linear_cuda(out, x, weight, scales, residual, {}, {}, false);
}

void rms_norm_linear_cuda(
    const Tensor& out, const Tensor& x, const Tensor& norm_weight, double eps, const Tensor& weight,
    const OptionalTensor& scales) {
  const RmsNormLinear args = check_rms_norm_linear(out, x, norm_weight, weight, scales);
  if (out.numel() == 0) return;
  Gemm p;
  p.weight = args.weight;
  p.x = args.x;
  p.rows = static_cast<int>(args.rows);
  p.norm = row_norm(norm_weight, norm_weight, args.rows, eps);
  p.out = args.out;
  gemm(Launch("rms_norm_linear", out), p, out);
}

}  // namespace

void gemm(const Launch& launch, const Gemm& given, const Tensor& like) {
  HIGGS_CHECK(
      is_aligned(given.weight.data) && is_aligned(given.weight.scales), launch.op(),
      ": weight and its scales must be aligned to 16 bytes, got ", static_cast<const void*>(given.weight.data), " and ",
      given.weight.scales);
  Gemm p = given;
  p.vectorized =
      p.weight.k % 4 == 0 && is_aligned(p.x) && is_aligned(p.norm.text_weight) && is_aligned(p.norm.audio_weight);
  p.inverse_of_rows = static_cast<uint32_t>(ceil_div(1 << 16, std::clamp(p.rows, 1, kRowTile)));
  if (p.epilogue == Epilogue::kRope) {
    const int head_dim = p.rope.head_dim, panel = static_cast<int>(kPanel);
    const bool normalizes = p.rope.query_norm || p.rope.key_norm;
    if (!normalizes && head_dim % (2 * panel) == 0) return dispatch_gemm(launch, p, like, head_dim / 2 / panel);
    if (normalizes || panel % head_dim != 0) return gemm_then_rope(launch, p, like);
  }
  dispatch_gemm(launch, p, like, 0);
}

Tensor add_low_rank(const Launch& launch, Gemm& p, const LowRank& low_rank, int64_t first, const Tensor& like) {
  Factors factors = {};
  WeightFormat format = WeightFormat::f32;
  int64_t max_rank = 0;
  for (size_t adapter = 0; adapter < low_rank.count; ++adapter) {
    const PackedWeight a = low_rank.a(adapter, p.weight.k);
    if (!a.data) continue;
    const PackedWeight b = low_rank.b(adapter, p.weight.n);
    factors.a[adapter] = a.data;
    factors.b[adapter] = b.data;
    factors.a_units[adapter] = static_cast<int>(a.units);
    factors.b_units[adapter] = static_cast<int>(b.units);
    format = a.format;
    max_rank = std::max(max_rank, a.n);
  }
  if (max_rank == 0) return {};
  const int64_t panels = ceil_div(p.weight.n, kPanel), stride = ceil_div(max_rank, kPanel) * kPanel;
  const Tensor memory = torch::stable::new_empty(like, {p.rows * (stride + panels * kPanel)}, ScalarType::Float);
  auto* sums = memory.mutable_data_ptr<float>();
  const LowRankRows rows = {
      p.x,
      low_rank.adapters->const_data_ptr<int32_t>() + first,
      sums,
      sums + p.rows * stride,
      p.norm,
      static_cast<int>(p.weight.k),
      static_cast<int>(panels),
      static_cast<int>(stride)};
  switch (format) {
    case WeightFormat::bf16: launch_low_rank<bfloat16>(launch, rows, factors, p.rows); break;
    case WeightFormat::f16: launch_low_rank<float16>(launch, rows, factors, p.rows); break;
    default: launch_low_rank<float>(launch, rows, factors, p.rows);
  }
  p.added = rows.added;
  return memory;
}

int64_t packed_words(const Launch& launch, const Gemm& p) {
  if (!by_warpgroups(launch, p)) return 0;
  const int64_t tiles = ceil_div(p.rows, kRowTile);
  constexpr WeightFormat kOne = WeightFormat::fp8, kTwo = WeightFormat::bf16;  // bytes a weight
  const int64_t steps = ceil_div(p.weight.units, Step<kOne>::kUnits);
  return p.weight.format == kOne ? words_of_tiles<kOne>(tiles, steps) : words_of_tiles<kTwo>(tiles, steps);
}

NextWeights next_weights(const Tensor& packed, int64_t max_bytes, int64_t skipped_bytes) {
  const int64_t panels = packed.size(0), panel_bytes = packed.size(1) * kUnitBytes;
  const auto* data = static_cast<const char*>(packed.const_data_ptr());
  if (panels == 0 || !is_aligned(data)) return {};
  auto share = [&](int64_t bytes) {
    return static_cast<uint32_t>(std::min(panel_bytes, bytes / panels / kUnitBytes * kUnitBytes));
  };
  const int panel_bits = std::bit_width(static_cast<uint64_t>(panels - 1));
  return {data,       panel_bytes,          static_cast<int>(panels),
          panel_bits, share(skipped_bytes), share(skipped_bytes + max_bytes)};
}

void linear_cuda(
    const Tensor& out, const Tensor& x, const Tensor& weight, const OptionalTensor& scales,
    const OptionalTensor& residual, const LowRank& low_rank, const NextWeights& next, bool next_first) {
  const Linear args = check_linear(out, x, weight, scales, residual);
  if (out.numel() == 0) return;
  Gemm p;
  p.weight = args.weight;
  p.x = args.x;
  p.rows = static_cast<int>(args.rows);
  p.residual = args.residual;
  p.out = args.out;
  p.next = next;
  p.next_first = next_first;
  const Launch launch("linear", out);
  const Tensor added = add_low_rank(launch, p, low_rank, 0, out);
  gemm(launch, p, out);
}

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY_IMPL(higgs_native, HIGGS_NATIVE_CUDA_KEY, m) {
  m.impl("linear", TORCH_BOX(&higgs_native::cuda::linear_registered));
  m.impl("rms_norm_linear", TORCH_BOX(&higgs_native::cuda::rms_norm_linear_cuda));
  m.impl("pack_linear", TORCH_BOX(&higgs_native::cuda::pack_linear_cuda));
}
