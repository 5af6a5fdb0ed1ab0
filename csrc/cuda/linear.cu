// Products with packed weights: out[r][n] = sum_k x[r][k] * weight[n][k], x normalised before and something done after.
//
// A block takes one or two panels of the weight (common/weight_format.h) against 8, 32 or 64 rows of x. Its warps share out
// the depth k, step by step in turns, and their sums are joined at the end in a fixed order: an output depends on its row and
// the weight's shape alone, neither on the batch nor on who came first. A lane loads 16 bytes at a time: of one unit the
// words of four weight rows, which is how the tensor cores' fragments lie: lane 4 * g + t holds rows 4 g .. 4 g + 3 of the
// units t * kChunks + c of a step, and of x row g in the columns of those units. So weights go from memory to the tensor
// cores as they are (4-bit integers after one shift and mask), each byte once for all rows of the block, and the loads of
// the next steps are under way while this one is multiplied.
//   bfloat16   x is rounded to bfloat16, sums are float32;
//   float16    the same, in float16: x must stay below 65520 once it is multiplied with the norm's weight;
//   fp8        as bfloat16: e4m3 is widened to it in registers;
//   int8/int4  x is rounded to 8 bits with a scale for each row and group of 128 columns; integer sums within a group, exact;
//   float32    plain multiply-adds: for comparisons, not for speed.
// RMSNorm scales a row as a whole, so it is applied to the finished sums; its sum of squares comes along with the loads of x.
// Up to 8 rows are read as they are by every block. More rows are brought into the order of the fragments once, by a kernel
// before. Bytes moved: the weight, once (rows beyond 64 find it in the second cache), x for each block from the second cache.
#include "cuda/linear.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "args/linear.h"
#include "cuda/decoder.h"

namespace higgs_native::cuda {

namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kRowTile = 8;  // rows of x that one tensor-core product takes

// A step is the part of a panel that a warp takes at a time.
template <WeightFormat F>
struct Step {
  static constexpr bool kInteger = is_integer(F), kRowScales = has_row_scales(F);
  static constexpr int kChunks = F == WeightFormat::int8 ? 8 : 4;  // loads of 16 bytes of a lane
  static constexpr int kUnits = 4 * kChunks;
  static constexpr int kColumns = kUnits * static_cast<int>(unit_columns(F));
  static constexpr int kLaneColumns = kColumns / 4;
  // Words of x that a lane holds: a float, two numbers of 16 bits or four bytes each.
  static constexpr int kWords = kInteger || F == WeightFormat::fp8 ? 8 : 4;
};
static_assert(Step<WeightFormat::int8>::kColumns == kQuantGroup && Step<WeightFormat::int4>::kColumns == kQuantGroup);

// What the tensor cores take of weights of 16 bits.
template <WeightFormat F>
using PairOf = std::conditional_t<F == WeightFormat::f16, float16, bfloat16>;

// A lane's share of x in a step.
template <WeightFormat F>
struct Activations {
  uint32_t words[Step<F>::kWords];
  float scale;    // of row g, where x is rounded to integers: the same in all lanes of a row
  int32_t zeros;  // what 4-bit weights, stored as w + 8, add too much: 8 times the sum of the row's integers
};

// x prepared for many rows, in the order of the fragments.
struct Prepared {
  uint32_t* words;    // [tiles, steps, kWords / 4, 32 lanes, 4]
  float* scales;      // [tiles, steps, kRowTile]
  int32_t* zeros;     // [tiles, steps, kRowTile]
  float* row_scales;  // [tiles, kRowTile]: of RMSNorm

  // The lane's share of a tile in a step.
  template <WeightFormat F>
  __device__ __forceinline__ Activations<F> read(int tile, int step, int steps) const {
    using S = Step<F>;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t at = static_cast<int64_t>(tile) * steps + step;
    const auto* from = reinterpret_cast<const uint4*>(words) + at * (S::kWords / 4) * kWarp + lane;
    Activations<F> x;
#pragma unroll
    for (int i = 0; i < S::kWords / 4; ++i) {
      const uint4 four = from[i * kWarp];
      x.words[4 * i] = four.x;
      x.words[4 * i + 1] = four.y;
      x.words[4 * i + 2] = four.z;
      x.words[4 * i + 3] = four.w;
    }
    if constexpr (S::kInteger) {
      x.scale = scales[at * kRowTile + lane / 4];
      x.zeros = zeros[at * kRowTile + lane / 4];
    }
    return x;
  }
};

__device__ __forceinline__ int group_lane() { return static_cast<int>(threadIdx.x) % kWarp / 4; }
__device__ __forceinline__ int lane_in_group() { return static_cast<int>(threadIdx.x) % 4; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

// Of the four lanes that share a row.
__device__ __forceinline__ float group_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// Values [column, column + kCount) of a row of k; zeros beyond.
template <int kCount>
__device__ __forceinline__ void load_row(float (&v)[kCount], const float* row, int column, int k, bool vectors) {
  if (column + kCount <= k && vectors) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(row + column + i);
      v[i] = four.x;
      v[i + 1] = four.y;
      v[i + 2] = four.z;
      v[i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = column + i < k ? row[column + i] : 0.f;
  }
}

// Multiplies with values [column, column + kCount) of a norm's weight.
template <int kCount>
__device__ __forceinline__ void multiply_norm(
    float (&v)[kCount], const RowNorm& norm, const void* weight, int column, int k, bool vectors) {
  if (norm.type == NumberType::float32) {
    float w[kCount];
    load_row(w, static_cast<const float*>(weight), column, k, vectors);
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] *= w[i];
    return;
  }
  auto widen = [&](uint32_t word) {
    return norm.type == NumberType::bfloat16 ? unpack<bfloat16>(word) : unpack<float16>(word);
  };
  const uint16_t* row = static_cast<const uint16_t*>(weight) + column;
  if (column + kCount <= k && vectors) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const uint2 four = *reinterpret_cast<const uint2*>(row + i);
      const float2 first = widen(four.x), second = widen(four.y);
      v[i] *= first.x;
      v[i + 1] *= first.y;
      v[i + 2] *= second.x;
      v[i + 3] *= second.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (column + i < k) v[i] *= widen(row[i]).x;
    }
  }
}

// Rounds a lane's values to 8 bits, with the scale of the whole group of 128 columns. Values that are not finite make the
// scale NaN.
template <WeightFormat F>
__device__ __forceinline__ void quantize(Activations<F>& to, const float (&v)[Step<F>::kLaneColumns]) {
  float most = 0;
  bool finite = true;
#pragma unroll
  for (int i = 0; i < Step<F>::kLaneColumns; ++i) {
    most = fmaxf(most, fabsf(v[i]));
    finite &= fabsf(v[i]) <= 3.4028234e38f;
  }
  if (!finite) most = bits_as_float(0x7f800000u);
  most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
  most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
  finite = most <= 3.4028234e38f;
  const float inverse = most > 1e-30f && finite ? 127.f / most : 0.f;
  int32_t sum = 0;
#pragma unroll
  for (int word = 0; word < Step<F>::kWords; ++word) {
    uint32_t bytes = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t q = finite ? __float2int_rn(v[4 * word + i] * inverse) : 0;
      sum += q;
      bytes |= (static_cast<uint32_t>(q) & 0xffu) << (8 * i);
    }
    to.words[word] = bytes;
  }
  to.scale = finite ? most / 127.f : bits_as_float(0x7fc00000u);
  if constexpr (F == WeightFormat::int4) {
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    to.zeros = 8 * sum;
  } else {
    to.zeros = 0;
  }
}

// Reads the lane's share of row `row` of x in a step, and adds its squares to `squares`.
template <WeightFormat F>
__device__ __forceinline__ Activations<F> read_activations(float& squares, const Product& p, int row, int step) {
  using S = Step<F>;
  const int k = static_cast<int>(p.weight.k), column = step * S::kColumns + lane_in_group() * S::kLaneColumns;
  float v[S::kLaneColumns];
  if (row < p.rows) {
    load_row(v, p.x + static_cast<int64_t>(row) * k, column, k, p.vectors);
    if (p.norm.text_weight) {
#pragma unroll
      for (int i = 0; i < S::kLaneColumns; ++i) squares = fmaf(v[i], v[i], squares);
      const void* weight = row < p.norm.num_text_rows ? p.norm.text_weight : p.norm.audio_weight;
      multiply_norm(v, p.norm, weight, column, k, p.vectors);
    }
  } else {
#pragma unroll
    for (int i = 0; i < S::kLaneColumns; ++i) v[i] = 0;
  }
  Activations<F> a;
  if constexpr (S::kInteger) {
    quantize<F>(a, v);
  } else if constexpr (F == WeightFormat::fp8) {
    // Of each four columns the first and the third, then the others, as widening gives the weights.
#pragma unroll
    for (int i = 0; i < S::kWords; ++i) {
      const int first = i / 2 * 4 + i % 2;
      a.words[i] = pack<bfloat16>(v[first], v[first + 2]);
    }
  } else if constexpr (F == WeightFormat::f32) {
#pragma unroll
    for (int i = 0; i < S::kWords; ++i) a.words[i] = float_as_bits(v[i]);
  } else {
#pragma unroll
    for (int i = 0; i < S::kWords; ++i) a.words[i] = pack<PairOf<F>>(v[2 * i], v[2 * i + 1]);
  }
  return a;
}

// What RMSNorm multiplies row g with, from each warp's squares, in every lane of the row of the first warp.
__device__ __forceinline__ float row_scale(float squares, float (*shared)[kRowTile], const Product& p) {
  squares = group_sum(squares);
  if (lane_in_group() == 0) shared[warp_index()][group_lane()] = squares;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp][group_lane()];
  return p.norm.text_weight ? 1 / sqrtf(sum / static_cast<float>(p.weight.k) + p.norm.eps) : 1.f;
}

// A block a tile of 8 rows; its warps take the steps in the same turns as those of the product, so that the squares are
// summed in the same order.
template <WeightFormat F>
__global__ void __launch_bounds__(kThreads) prepare_kernel(Product p, Prepared to, int steps) {
  using S = Step<F>;
  __shared__ float shared[kWarps][kRowTile];
  allow_next_launch();
  wait_for_earlier_launches();
  const int64_t tile = blockIdx.x;
  const int row = static_cast<int>(tile) * kRowTile + group_lane(), lane = static_cast<int>(threadIdx.x) % kWarp;
  float squares = 0;
  for (int step = warp_index(); step < steps; step += kWarps) {
    const Activations<F> a = read_activations<F>(squares, p, row, step);
    auto* words = reinterpret_cast<uint4*>(to.words) + (tile * steps + step) * (S::kWords / 4) * kWarp + lane;
#pragma unroll
    for (int i = 0; i < S::kWords / 4; ++i) {
      words[i * kWarp] = make_uint4(a.words[4 * i], a.words[4 * i + 1], a.words[4 * i + 2], a.words[4 * i + 3]);
    }
    if (S::kInteger && lane_in_group() == 0) {
      to.scales[(tile * steps + step) * kRowTile + group_lane()] = a.scale;
      to.zeros[(tile * steps + step) * kRowTile + group_lane()] = a.zeros;
    }
  }
  const float scale = row_scale(squares, shared, p);
  if (warp_index() == 0 && lane_in_group() == 0) to.row_scales[tile * kRowTile + group_lane()] = scale;
}

// The weights of a lane in a step, and the scales of its weight rows 4 g .. 4 g + 3.
template <WeightFormat F, int kPanels>
struct Weights {
  uint4 words[kPanels][Step<F>::kChunks];
  uint2 scales[F == WeightFormat::int4 ? kPanels : 1];
};

// `panels` and `scales` point to the lane's place in each panel; null where there is no panel.
template <WeightFormat F, int kPanels>
__device__ __forceinline__ void load_weights(
    Weights<F, kPanels>& to, const char* const (&panels)[kPanels], const uint16_t* const (&scales)[kPanels], int step,
    int units) {
  using S = Step<F>;
  const int first = step * S::kUnits + lane_in_group() * S::kChunks;
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      to.words[panel][c] = panels[panel] && first + c < units
                               ? load_streaming(panels[panel] + static_cast<int64_t>(first + c) * kUnitBytes)
                               : make_uint4(0, 0, 0, 0);
    }
    if constexpr (F == WeightFormat::int4) {
      to.scales[panel] =
          scales[panel] ? *reinterpret_cast<const uint2*>(scales[panel] + step * kPanel) : make_uint2(0, 0);
    }
  }
}

// Sums of a lane: [panel][tile of 16 weight rows][tile of 8 rows of x][fragment]; of float32 weights [panel][weight row 4 g
// + i][row of x], for the lane's columns alone.
template <WeightFormat F, int kPanels, int kTiles>
struct Sums {
  static constexpr int kOfPanel = F == WeightFormat::f32 ? 4 * kRowTile : 8 * kTiles;
  static constexpr int kCount = kPanels * kOfPanel;
  float v[kCount];
};

// Adds one step's products of panel `panel` with tile `tile` of x.
template <WeightFormat F, int kPanels, int kTiles>
__device__ __forceinline__ void multiply(
    Sums<F, kPanels, kTiles>& sums, int panel, int tile, const Weights<F, kPanels>& weights, const Activations<F>& x) {
  using S = Step<F>;
  const uint4(&w)[S::kChunks] = weights.words[panel];
  if constexpr (F == WeightFormat::f32) {
    float* to = sums.v + panel * 4 * kRowTile;
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      const float four[4] = {
          bits_as_float(w[c].x), bits_as_float(w[c].y), bits_as_float(w[c].z), bits_as_float(w[c].w)};
#pragma unroll
      for (int row = 0; row < kRowTile; ++row) {
        const float value = bits_as_float(__shfl_sync(kAllLanes, x.words[c], row * 4 + lane_in_group()));
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i * kRowTile + row] += four[i] * value;
      }
    }
  } else if constexpr (F == WeightFormat::bf16 || F == WeightFormat::f16) {
    using Pair = PairOf<F>;
    float (*to)[4] = reinterpret_cast<float (*)[4]>(sums.v + panel * 8 * kTiles);
#pragma unroll
    for (int c = 0; c < S::kChunks; c += 2) {
      const uint32_t b[2] = {x.words[c], x.words[c + 1]};
      multiply_pairs<Pair>(to[tile], {w[c].x, w[c].y, w[c + 1].x, w[c + 1].y}, b);
      multiply_pairs<Pair>(to[kTiles + tile], {w[c].z, w[c].w, w[c + 1].z, w[c + 1].w}, b);
    }
  } else if constexpr (F == WeightFormat::fp8) {
    // Written here, widening takes the fewest registers; the compiler does it once for all tiles.
    float (*to)[4] = reinterpret_cast<float (*)[4]>(sums.v + panel * 8 * kTiles);
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      const uint32_t b[2] = {x.words[2 * c], x.words[2 * c + 1]};
      multiply_pairs<bfloat16>(
          to[tile], {widen_e4m3(w[c].x << 8), widen_e4m3(w[c].y << 8), widen_e4m3(w[c].x), widen_e4m3(w[c].y)}, b);
      multiply_pairs<bfloat16>(
          to[kTiles + tile], {widen_e4m3(w[c].z << 8), widen_e4m3(w[c].w << 8), widen_e4m3(w[c].z), widen_e4m3(w[c].w)},
          b);
    }
  } else {
    int32_t integers[2][4] = {};
    if constexpr (F == WeightFormat::int8) {
#pragma unroll
      for (int c = 0; c < S::kChunks; c += 2) {
        const uint32_t b[2] = {x.words[c], x.words[c + 1]};
        multiply_bytes<true>(integers[0], {w[c].x, w[c].y, w[c + 1].x, w[c + 1].y}, b);
        multiply_bytes<true>(integers[1], {w[c].z, w[c].w, w[c + 1].z, w[c + 1].w}, b);
      }
    } else {
      constexpr uint32_t kLow = 0x0f0f0f0fu;
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        const uint32_t b[2] = {x.words[2 * c], x.words[2 * c + 1]};
        multiply_bytes<false>(integers[0], {w[c].x & kLow, w[c].y & kLow, w[c].x >> 4 & kLow, w[c].y >> 4 & kLow}, b);
        multiply_bytes<false>(integers[1], {w[c].z & kLow, w[c].w & kLow, w[c].z >> 4 & kLow, w[c].w >> 4 & kLow}, b);
      }
    }
    // Of the fragments' columns, which are rows 2 t and 2 t + 1 of x.
    const int from = 8 * lane_in_group();
    const float scales[2] = {__shfl_sync(kAllLanes, x.scale, from), __shfl_sync(kAllLanes, x.scale, from + 4)};
    int32_t zeros[2] = {0, 0};
    float weight_scales[4] = {1, 1, 1, 1};
    if constexpr (F == WeightFormat::int4) {
      zeros[0] = __shfl_sync(kAllLanes, x.zeros, from);
      zeros[1] = __shfl_sync(kAllLanes, x.zeros, from + 4);
      const uint2 halves = weights.scales[panel];
      const float2 first = unpack<float16>(halves.x), second = unpack<float16>(halves.y);
      weight_scales[0] = first.x;
      weight_scales[1] = first.y;
      weight_scales[2] = second.x;
      weight_scales[3] = second.y;
    }
    float* to = sums.v + panel * 8 * kTiles;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        to[(half * kTiles + tile) * 4 + i] +=
            static_cast<float>(integers[half][i] - zeros[i % 2]) * scales[i % 2] * weight_scales[2 * half + i / 2];
      }
    }
  }
}

// The sums of a block in shared memory, finished: [panel * 32 + weight row][row of x].
template <int kTiles>
struct BlockSums {
  static constexpr int kStride = kTiles * kRowTile + 1;
  float* values;
  const float* row_scales;     // [kTiles * kRowTile]
  const float* weight_scales;  // of weight rows, [kPanel] for each panel of the weight; or null
  const int* panels;           // which panels of the weight these are

  __device__ __forceinline__ float operator()(int panel, int weight_row, int row) const {
    const float sum = values[(panel * static_cast<int>(kPanel) + weight_row) * kStride + row] * row_scales[row];
    return weight_scales ? sum * weight_scales[panels[panel] * kPanel + weight_row] : sum;
  }
};

template <int kPanels, int kTiles>
__device__ __forceinline__ void finish(const Product& p, const BlockSums<kTiles>& sums, int first_row, bool paired) {
  constexpr int kRows = kTiles * kRowTile, kLanes = static_cast<int>(kPanel), kUnits = kLanes / 2;
  const int n = static_cast<int>(p.weight.n);
  const int thread = static_cast<int>(threadIdx.x), rows = min(kRows, p.rows - first_row);
  if (p.following == Following::residual) {
    for (int i = thread; i < kPanels * kLanes * rows; i += kThreads) {
      const int r = i % kLanes, panel = i / kLanes % kPanels, row = i / kLanes / kPanels;
      const int column = sums.panels[panel] * kLanes + r;
      if (column >= n) continue;
      const int64_t at = static_cast<int64_t>(first_row + row) * n + column;
      p.out[at] = sums(panel, r, row) + (p.residual ? p.residual[at] : 0.f);
    }
  } else if (p.following == Following::silu) {
    for (int i = thread; i < kPanels * kUnits * rows; i += kThreads) {
      const int r = i % kUnits, panel = i / kUnits % kPanels, row = i / kUnits / kPanels;
      const int column = sums.panels[panel] * kUnits + r;
      if (column >= p.n_out) continue;
      const float gate = sums(panel, r, row), up = sums(panel, kUnits + r, row);
      p.out[static_cast<int64_t>(first_row + row) * p.n_out + column] = gate / (1 + expf(-gate)) * up;
    }
  } else if (paired) {
    // The panels hold dimensions half a head apart.
    const int weight_row = sums.panels[0] * kLanes, head = weight_row / p.rope.head_dim;
    for (int i = thread; i < kLanes * rows; i += kThreads) {
      const int r = i % kLanes, row = i / kLanes;
      p.rope.write(first_row + row, head, weight_row % p.rope.head_dim + r, sums(0, r, row), sums(1, r, row));
    }
  } else {
    const int half = p.rope.head_dim / 2;
    for (int i = thread; i < kPanels * kLanes * rows; i += kThreads) {
      const int r = i % kLanes, panel = i / kLanes % kPanels, row = i / kLanes / kPanels;
      const int weight_row = sums.panels[panel] * kLanes + r, dimension = weight_row % p.rope.head_dim;
      if (weight_row >= n || dimension >= half) continue;
      p.rope.write(
          first_row + row, weight_row / p.rope.head_dim, dimension, sums(panel, r, row), sums(panel, r + half, row));
    }
  }
}

// Bytes of shared memory: the sums of half the warps, then what finish() reads.
template <WeightFormat F, int kPanels, int kTiles>
constexpr size_t shared_bytes() {
  return (kWarps / 2 * Sums<F, kPanels, kTiles>::kCount * kWarp + kPanels * kPanel * BlockSums<kTiles>::kStride +
          kTiles * kRowTile) *
         sizeof(float);
}

// `pair_distance`: where above 0, the second panel of a block is so far behind the first (half a head, for Following::rope).
template <WeightFormat F, int kPanels, int kTiles, bool kPrepared>
__global__ void __launch_bounds__(kThreads) product_kernel(Product p, Prepared prepared, int steps, int pair_distance) {
  using BlockOfSums = Sums<F, kPanels, kTiles>;
  __shared__ float squares_of_warps[kWarps][kRowTile];
  __shared__ int panels[kPanels];
  const int warp = warp_index(), lane = static_cast<int>(threadIdx.x) % kWarp;
  const int num_panels = static_cast<int>((p.weight.n + kPanel - 1) / kPanel);
  const int units = static_cast<int>(p.weight.units);

  int panel_of[kPanels];
  const char* weight[kPanels];
  const uint16_t* scales[kPanels];  // of 4-bit weights
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    const int block = static_cast<int>(blockIdx.y);
    panel_of[i] = pair_distance > 0
                      ? block / pair_distance * 2 * pair_distance + block % pair_distance + i * pair_distance
                      : block * kPanels + i;
    weight[i] = panel_of[i] < num_panels
                    ? p.weight.data + static_cast<int64_t>(panel_of[i]) * units * kUnitBytes + group_lane() * 16
                    : nullptr;
    scales[i] = weight[i] ? static_cast<const uint16_t*>(p.weight.scales) +
                                static_cast<int64_t>(panel_of[i]) * steps * kPanel + 4 * group_lane()
                          : nullptr;
    if (threadIdx.x == 0) panels[i] = panel_of[i];
  }

  // So many steps of a warp are under way. Where blocks are few, each must ask for much: at least 8 KB a warp.
  constexpr int kAhead = kPanels * Step<F>::kChunks == 4 && !kPrepared ? 4 : 2;
  Weights<F, kPanels> ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int step = warp + i * kWarps;
    if (step < steps) load_weights<F, kPanels>(ahead[i], weight, scales, step, units);
  }
  allow_next_launch();
  wait_for_earlier_launches();

  BlockOfSums sums;
#pragma unroll
  for (int i = 0; i < BlockOfSums::kCount; ++i) sums.v[i] = 0;
  float squares = 0;
  const int first_tile = static_cast<int>(blockIdx.x) * kTiles;
  // Unrolled, so that the weights that are under way stay in the registers that they come to.
  for (int first = warp; first < steps; first += kAhead * kWarps) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int step = first + i * kWarps;
      if (step >= steps) break;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        Activations<F> x;
        if constexpr (kPrepared) x = prepared.template read<F>(first_tile + tile, step, steps);
        else x = read_activations<F>(squares, p, first_tile * kRowTile + group_lane(), step);
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) multiply(sums, panel, tile, ahead[i], x);
      }
      const int next = step + kAhead * kWarps;
      if (next < steps) load_weights<F, kPanels>(ahead[i], weight, scales, next, units);
    }
  }

  if constexpr (F == WeightFormat::f32) {
#pragma unroll
    for (int i = 0; i < BlockOfSums::kCount; ++i) sums.v[i] = group_sum(sums.v[i]);
  }
  auto* joined = reinterpret_cast<float*>(dynamic_shared());
  auto* values = joined + kWarps / 2 * BlockOfSums::kCount * kWarp;
  float* row_scales = values + kPanels * kPanel * BlockSums<kTiles>::kStride;
#pragma unroll
  for (int half = kWarps / 2; half > 0; half /= 2) {
    float* mine = joined + warp % half * BlockOfSums::kCount * kWarp + lane;
    if (warp >= half && warp < 2 * half) {
#pragma unroll
      for (int i = 0; i < BlockOfSums::kCount; ++i) mine[i * kWarp] = sums.v[i];
    }
    __syncthreads();
    if (warp < half) {
#pragma unroll
      for (int i = 0; i < BlockOfSums::kCount; ++i) sums.v[i] += mine[i * kWarp];
    }
    __syncthreads();
  }
  if constexpr (kPrepared) {
    if (threadIdx.x < kTiles * kRowTile) {
      row_scales[threadIdx.x] = prepared.row_scales[first_tile * kRowTile + threadIdx.x];
    }
  } else {
    const float scale = row_scale(squares, squares_of_warps, p);
    if (warp == 0 && lane_in_group() == 0) row_scales[group_lane()] = scale;
  }
  if (warp == 0) {
    constexpr int kStride = BlockSums<kTiles>::kStride;
    const int g = group_lane(), t = lane_in_group();
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      float* to = values + (panel * kPanel + 4 * g) * kStride;
      const float* from = sums.v + panel * BlockOfSums::kOfPanel;
      if constexpr (F == WeightFormat::f32) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int row = 0; row < kRowTile; ++row) {
            if (row % 4 == t) to[i * kStride + row] = from[i * kRowTile + row];
          }
        }
      } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              to[(2 * half + i / 2) * kStride + tile * kRowTile + 2 * t + i % 2] = from[(half * kTiles + tile) * 4 + i];
            }
          }
        }
      }
    }
  }
  __syncthreads();
  const BlockSums<kTiles> finished = {
      values, row_scales, Step<F>::kRowScales ? static_cast<const float*>(p.weight.scales) : nullptr, panels};
  finish<kPanels, kTiles>(p, finished, first_tile * kRowTile, pair_distance > 0);
}

template <WeightFormat F, int kPanels, int kTiles, bool kPrepared>
void run_product(const Launch& launch, const Product& p, const Prepared& prepared, int steps, int pair_distance) {
  const int64_t row_blocks = ceil_div(p.rows, kTiles * kRowTile);
  const int64_t panel_blocks = ceil_div(ceil_div(p.weight.n, kPanel), kPanels);
  // Blocks that share a panel are neighbours, so that all but the first find it in the second cache.
  const dim3 grid(static_cast<unsigned>(row_blocks), static_cast<unsigned>(panel_blocks));
  launch(
      product_kernel<F, kPanels, kTiles, kPrepared>, grid, kThreads, shared_bytes<F, kPanels, kTiles>(), p, prepared,
      steps, pair_distance);
}

template <WeightFormat F>
void product_of_format(const Launch& launch, const Product& p, const Tensor& like, int pair_distance) {
  using S = Step<F>;
  const int steps = static_cast<int>(ceil_div(p.weight.units, S::kUnits));
  const int64_t panels = ceil_div(p.weight.n, kPanel);
  const bool two_panels = pair_distance > 0 || panels >= 2 * launch.multiprocessors();
  if (F == WeightFormat::f32 || p.rows <= kRowTile) {
    auto* run = two_panels ? run_product<F, 2, 1, false> : run_product<F, 1, 1, false>;
    run(launch, p, Prepared(), steps, pair_distance);
    return;
  }
  if constexpr (F != WeightFormat::f32) {
    // As many rows at a time as registers hold the sums of, with their integers where those are apart.
    constexpr int kTilesOfPair = S::kInteger ? 2 : F == WeightFormat::fp8 ? 4 : 8;
    const bool pair = pair_distance > 0 || (!S::kInteger && two_panels && p.rows > 4 * kRowTile);
    const int tiles_of_block = pair ? kTilesOfPair : 4;
    const int64_t tiles = ceil_div(p.rows, tiles_of_block * kRowTile) * tiles_of_block;
    const int64_t words = tiles * steps * S::kWords * kWarp, rows = tiles * kRowTile;
    const int64_t scales = S::kInteger ? rows * steps : 0;
    const Tensor memory = torch::stable::new_empty(like, {words + 2 * scales + rows}, ScalarType::Int);
    Prepared prepared;
    prepared.words = static_cast<uint32_t*>(memory.mutable_data_ptr());
    prepared.scales = reinterpret_cast<float*>(prepared.words + words);
    prepared.zeros = reinterpret_cast<int32_t*>(prepared.scales + scales);
    prepared.row_scales = reinterpret_cast<float*>(prepared.zeros + scales);
    launch(prepare_kernel<F>, dim3(static_cast<unsigned>(tiles)), kThreads, 0, p, prepared, steps);
    auto* run = pair ? run_product<F, 2, kTilesOfPair, true> : run_product<F, 1, 4, true>;
    run(launch, p, prepared, steps, pair_distance);
  }
}

// Heads whose halves lie neither in one panel nor in whole panels: rotated after the product.
__global__ void __launch_bounds__(kThreads) rope_kernel(RopeCache rope, const float* projected, int n, int rows) {
  allow_next_launch();
  wait_for_earlier_launches();
  const int half = rope.head_dim / 2;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int row = static_cast<int>(i / (n / 2)), pair = static_cast<int>(i % (n / 2));
  if (row >= rows) return;
  const int head = pair / half, dimension = pair % half;
  const float* from = projected + static_cast<int64_t>(row) * n + head * rope.head_dim + dimension;
  rope.write(row, head, dimension, from[0], from[half]);
}

// A thread packs one word. The product that is launched next loads weights before it waits, so it must not begin early.
__global__ void __launch_bounds__(kThreads) pack_linear_kernel(PackLinear p) {
  wait_for_earlier_launches();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t lane = i % p.lanes, unit = i / p.lanes % p.units, panel = i / p.lanes / p.units;
  if (panel >= p.panels) return;
  const int64_t row = panel * p.lanes + lane;
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
  memcpy(p.packed + (panel * p.units + unit) * kUnitBytes + (p.first_lane + lane) * 4, bytes, 4);
  __threadfence();
}

void pack_linear_cuda(const Tensor& packed, const Tensor& weight, int64_t first_lane, int64_t lanes) {
  const PackLinear p = check_pack_linear(packed, weight, first_lane, lanes);
  const int64_t words = p.panels * p.lanes * p.units;
  if (words == 0) return;
  Launch launch("pack_linear", packed);
  launch(pack_linear_kernel, dim3(static_cast<unsigned>(ceil_div(words, kThreads))), kThreads, 0, p);
}

void rms_norm_linear_cuda(
    const Tensor& out, const Tensor& x, const Tensor& norm_weight, double eps, const Tensor& weight,
    const OptionalTensor& scales) {
  const RmsNormLinear args = check_rms_norm_linear(out, x, norm_weight, weight, scales);
  if (out.numel() == 0) return;
  Product p;
  p.weight = args.weight;
  p.x = args.x;
  p.rows = static_cast<int>(args.rows);
  p.norm = row_norm(norm_weight, norm_weight, args.rows, eps);
  p.out = args.out;
  product(Launch("rms_norm_linear", out), p, out);
}

}  // namespace

void product(const Launch& launch, const Product& given, const Tensor& like) {
  STD_TORCH_CHECK(
      is_aligned(given.weight.data) && is_aligned(given.weight.scales), launch.op(),
      ": a packed weight and its scales must begin at multiples of 16 bytes on CUDA, got ", given.weight.data, " and ",
      given.weight.scales);
  Product p = given;
  p.vectors =
      p.weight.k % 4 == 0 && is_aligned(p.x) && is_aligned(p.norm.text_weight) && is_aligned(p.norm.audio_weight);
  int pair_distance = 0;  // in panels
  if (p.following == Following::rope) {
    const int head_dim = p.rope.head_dim, panel = static_cast<int>(kPanel);
    if (head_dim % (2 * panel) == 0) {
      pair_distance = head_dim / 2 / panel;
    } else if (panel % head_dim != 0) {
      const int n = static_cast<int>(p.weight.n);
      const Tensor projected = torch::stable::new_empty(like, {p.rows, p.weight.n}, ScalarType::Float);
      Product plain = p;
      plain.following = Following::residual;
      plain.out = projected.mutable_data_ptr<float>();
      product(launch, plain, like);
      const int64_t pairs = static_cast<int64_t>(p.rows) * n / 2;
      launch(
          rope_kernel, dim3(static_cast<unsigned>(ceil_div(pairs, kThreads))), kThreads, 0, p.rope, plain.out, n,
          p.rows);
      return;
    }
  }
  switch (p.weight.format) {
    case WeightFormat::f32: return product_of_format<WeightFormat::f32>(launch, p, like, pair_distance);
    case WeightFormat::bf16: return product_of_format<WeightFormat::bf16>(launch, p, like, pair_distance);
    case WeightFormat::f16: return product_of_format<WeightFormat::f16>(launch, p, like, pair_distance);
    case WeightFormat::fp8: return product_of_format<WeightFormat::fp8>(launch, p, like, pair_distance);
    case WeightFormat::int8: return product_of_format<WeightFormat::int8>(launch, p, like, pair_distance);
    case WeightFormat::int4: return product_of_format<WeightFormat::int4>(launch, p, like, pair_distance);
  }
}

void linear_cuda(
    const Tensor& out, const Tensor& x, const Tensor& weight, const OptionalTensor& scales,
    const OptionalTensor& residual) {
  const Linear args = check_linear(out, x, weight, scales, residual);
  if (out.numel() == 0) return;
  Product p;
  p.weight = args.weight;
  p.x = args.x;
  p.rows = static_cast<int>(args.rows);
  p.residual = args.residual;
  p.out = args.out;
  product(Launch("linear", out), p, out);
}

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY_IMPL(higgs_native, HIGGS_NATIVE_CUDA_KEY, m) {
  m.impl("linear", TORCH_BOX(&higgs_native::cuda::linear_cuda));
  m.impl("rms_norm_linear", TORCH_BOX(&higgs_native::cuda::rms_norm_linear_cuda));
  m.impl("pack_linear", TORCH_BOX(&higgs_native::cuda::pack_linear_cuda));
}
