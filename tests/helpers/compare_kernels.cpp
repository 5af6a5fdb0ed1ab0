// Compares the NEON kernels with the generic ones, and a linear kernel's rows in a batch with the same rows alone: a
// program for tests/cross_aarch64.sh. The generic kernels are the same sources as on x86, where tests/ops has
// references.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/attention_kernels.h"
#include "cpu/audio_tokenizer_kernels.h"
#include "cpu/linear_kernels.h"
#include "cpu/quantization_kernels.h"
#include "cpu/sampling_kernels.h"

// Declared by the headers, for the library's own choice.
higgs_native::cpu::Isa higgs_native::cpu::active_isa() { return Isa::generic; }

namespace higgs_native::cpu {

namespace {

struct Set {
  const LinearKernels& linear;
  const AttentionKernels& attention;
  const AudioTokenizerKernels& audio_tokenizer;
  const SamplingKernels& sampling;
  const QuantizationKernels& quantization;
};

#define HIGGS_NATIVE_SET(tiles, isa)                                                                    \
  Set {                                                                                                 \
    tiles::linear_kernels, isa::attention_kernels, isa::audio_tokenizer_kernels, isa::sampling_kernels, \
        isa::quantization_kernels                                                                       \
  }

int num_checks = 0, num_failures = 0;

void check(bool holds, const std::string& what, double difference = 0) {
  ++num_checks;
  if (holds) return;
  ++num_failures;
  std::printf("%s: differs by %.3g\n", what.c_str(), difference);
}

uint32_t random_bits() {
  static uint32_t state = 1;
  state = state * 1664525u + 1013904223u;
  return state >> 8;  // 24 bits
}

std::vector<float> random_floats(size_t count) {
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(random_bits()) / (1 << 23) - 1;
  return values;
}

// The max difference, as a share of the max magnitude.
double difference(const std::vector<float>& expected, const std::vector<float>& got) {
  double largest = 0, most = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = std::max<double>(largest, std::fabs(expected[i]));
    const double apart = std::fabs(expected[i] - got[i]);
    if (!(apart <= most)) most = apart;  // a NaN too
  }
  return most / largest;
}

// Memory whose first byte lies at the beginning of a cache line.
class Lines {
 public:
  explicit Lines(size_t bytes) : memory_(bytes + 64) {}
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory_.data()) + 63) / 64 * 64);
  }

 private:
  std::vector<char> memory_;
};

// ---- Linear

constexpr int64_t kRows = 29, kN = 100, kPanels = (kN + kPanel - 1) / kPanel;

struct Weight {
  WeightFormat format;
  int64_t k, units;
  Lines words, scales;

  Weight(WeightFormat format, int64_t k)
      : format(format),
        k(k),
        units(k / unit_columns(format)),
        words(kPanels * units * kUnitBytes),
        scales(kPanels * kPanel * (k / kQuantGroup + 1) * 4) {
    const int64_t bytes = kPanels * units * kUnitBytes;
    for (int64_t i = 0; i < bytes / 2; ++i) {
      // Of numbers with an exponent, those of magnitudes around 1.
      uint16_t bits = static_cast<uint16_t>(random_bits());
      if (format == WeightFormat::bf16) bits = (bits & 0x80ff) | 0x3f00;
      if (format == WeightFormat::f16) bits = (bits & 0x8fff) | 0x3000;
      if (format == WeightFormat::fp8) bits &= 0xbfbf;
      words.as<uint16_t>()[i] = bits;
    }
    if (format == WeightFormat::f32) {
      const std::vector<float> values = random_floats(bytes / 4);
      std::memcpy(words.as<float>(), values.data(), bytes);
    }
    for (int64_t i = 0; i < kPanels * kPanel; ++i) scales.as<float>()[i] = 0.01f + 1e-9f * random_bits();
    if (format != WeightFormat::int4) return;
    for (int64_t i = 0; i < kPanels * kPanel * k / kQuantGroup; ++i) {
      scales.as<uint16_t>()[i] = static_cast<uint16_t>(0x2c00 | (random_bits() & 0x3ff));
    }
  }
};

std::vector<float> linear(const FormatKernels& kernels, Weight& weight, const float* x, int64_t rows) {
  const int64_t row_bytes = packed_row_bytes(weight.format, kernels, weight.units);
  Lines packed(rows * row_bytes);
  const int64_t groups = group_count(rows, kernels.group_rows);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = group_begin(g, groups, rows), count = group_begin(g + 1, groups, rows) - begin;
    kernels.pack_activations(
        packed.as<char>() + begin * row_bytes, x + begin * weight.k, {count, 0, count}, weight.k,
        filled_units(kernels, weight.units));
  }
  std::vector<float> out(rows * kN);
  kernels.gemm(
      {out.data(), kN, nullptr, packed.as<char>(), weight.words.as<char>(), weight.scales.as<char>(), rows, kN,
       weight.units});
  return out;
}

void compare_linear(const Set& generic, const Set& set) {
  constexpr const char* kNames[] = {"f32", "bf16", "f16", "fp8", "int8", "int4"};
  for (int format = 0; format < kWeightFormats; ++format) {
    for (const int64_t k : {128, 512}) {
      const std::string name = std::string(kNames[format]) + ", k " + std::to_string(k);
      Weight weight(static_cast<WeightFormat>(format), k);
      std::vector<float> x = random_floats(kRows * k);
      for (float& value : x) {  // numbers of bfloat16, which no kernel rounds
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        bits &= 0xffff0000;
        std::memcpy(&value, &bits, 4);
      }
      const std::vector<float> whole = linear(set.linear.formats[format], weight, x.data(), kRows);
      const double apart = difference(linear(generic.linear.formats[format], weight, x.data(), kRows), whole);
      check(apart < 3e-6, "linear, " + name, apart);
      for (const int64_t rows : {1, 2, 3, 5, 7, 12, 13}) {
        for (const int64_t first : {int64_t{0}, int64_t{9}, kRows - rows}) {
          const std::vector<float> some = linear(set.linear.formats[format], weight, x.data() + first * k, rows);
          check(
              std::memcmp(some.data(), whole.data() + first * kN, some.size() * 4) == 0,
              std::to_string(rows) + " rows by themselves, " + name);
        }
      }
    }
  }
  constexpr int64_t kValues = 299;
  const std::vector<float> x = random_floats(kValues), weight = random_floats(kValues);
  std::vector<float> expected(kValues), got(kValues);
  generic.linear.rms_norm_f32(expected.data(), x.data(), weight.data(), kValues, 1e-5f);
  set.linear.rms_norm_f32(got.data(), x.data(), weight.data(), kValues, 1e-5f);
  check(difference(expected, got) < 1e-6, "rms_norm", difference(expected, got));
  generic.linear.silu_mul(expected.data(), x.data(), weight.data(), kValues);
  set.linear.silu_mul(got.data(), x.data(), weight.data(), kValues);
  check(difference(expected, got) < 1e-6, "silu_mul", difference(expected, got));
}

// ---- Attention

template <typename T>
void compare_attention(const Set& generic, const Set& set, const std::string& name) {
  constexpr int64_t kHeadDim = 128, kGroup = 3, kPages = 8, kPageSize = 16, kCount = 77;
  const int32_t pages[kPages] = {3, 1, 0, 2, 7, 6, 5, 4};
  const auto &from = generic.attention.typed<T>(), &to = set.attention.typed<T>();
  std::vector<T> keys(kPages * kPageSize * kHeadDim), values(keys.size());
  for (size_t at = 0; at < keys.size(); at += kHeadDim) {
    from.store(&keys[at], random_floats(kHeadDim).data(), kHeadDim);
    from.store(&values[at], random_floats(kHeadDim).data(), kHeadDim);
  }
  const std::vector<float> query = random_floats(kGroup * kHeadDim);
  std::vector<float> scores(kGroup * kSplit), expected(query.size()), got(query.size());
  SoftmaxState states[kGroup];
  AttentionSplit<T> split = {query.data(),  keys.data(),     values.data(), pages,  kPageSize * kHeadDim,
                             kPageSize,     kGroup,          kHeadDim,      kCount, 0.088f,
                             scores.data(), expected.data(), states};
  from.attend(split);
  split.sums = got.data();
  to.attend(split);
  check(difference(expected, got) < 1e-5, "attention, " + name, difference(expected, got));
  std::vector<T> rotated(kHeadDim), same(kHeadDim);
  const std::vector<float> head = random_floats(kHeadDim), angles = random_floats(kHeadDim);
  from.rotate(rotated.data(), head.data(), angles.data(), kHeadDim);
  to.rotate(same.data(), head.data(), angles.data(), kHeadDim);
  check(std::memcmp(rotated.data(), same.data(), kHeadDim * sizeof(T)) == 0, "rotation, " + name);
}

// ---- The other families

void compare_audio_tokenizer(const Set& generic, const Set& set) {
  const std::vector<float> x = random_floats(2000);
  std::vector<float> expected(333), got(333);
  generic.audio_tokenizer.snake(expected.data(), x.data(), 0.7f, 333);
  set.audio_tokenizer.snake(got.data(), x.data(), 0.7f, 333);
  check(difference(expected, got) < 1e-6, "snake", difference(expected, got));
  constexpr int64_t kOutRows = 13, kChannels = 9, kTime = 48, kStride = 96;
  for (const int64_t taps : {1, 2, 3, 7}) {
    for (const int64_t dilation : {1, 3}) {
      const std::vector<float> weight = random_floats(kOutRows * kChannels * taps);
      expected.assign(kOutRows * kTime, 0.5f);
      got = expected;
      ConvolutionTile tile = {expected.data(), kTime,     x.data(), kStride,  weight.data(),
                              kOutRows,        kChannels, taps,     dilation, kTime};
      generic.audio_tokenizer.convolve(tile);
      tile.out = got.data();
      set.audio_tokenizer.convolve(tile);
      check(
          difference(expected, got) < 1e-6,
          "convolution, " + std::to_string(taps) + " taps, dilation " + std::to_string(dilation),
          difference(expected, got));
    }
  }
}

void compare_sampling(const Set& generic, const Set& set) {
  constexpr int64_t kLogits = 1026;
  const std::vector<float> logits = random_floats(kLogits);
  std::vector<uint32_t> keys(kLogits), same_keys(kLogits);
  std::vector<uint64_t> weights(kLogits), same_weights(kLogits);
  const KeyRange range = generic.sampling.make_keys(keys.data(), logits.data(), kLogits, 0.7f);
  const KeyRange same = set.sampling.make_keys(same_keys.data(), logits.data(), kLogits, 0.7f);
  check(keys == same_keys && range.lowest == same.lowest && range.highest == same.highest, "keys");
  const uint64_t sum = generic.sampling.weigh(weights.data(), keys.data(), kLogits, 1.5f);
  check(sum == set.sampling.weigh(same_weights.data(), keys.data(), kLogits, 1.5f), "the sum of weights");
  check(weights == same_weights, "weights");
}

void compare_quantization(const Set& generic, const Set& set) {
  constexpr int64_t kValues = 333;
  const std::vector<float> x = random_floats(kValues);
  const QuantizationKernels &from = generic.quantization, &to = set.quantization;
  std::vector<int8_t> rounded(kValues), same(kValues);
  from.round(rounded.data(), x.data(), kValues, 0.01f, -127, 127);
  to.round(same.data(), x.data(), kValues, 0.01f, -127, 127);
  check(rounded == same, "rounding");
  check(from.extreme(x.data(), kValues) == to.extreme(x.data(), kValues), "the extreme");
  const double error = from.error(x.data(), kValues, 0.01f, -127, 127);
  const double apart = std::fabs(to.error(x.data(), kValues, 0.01f, -127, 127) / error - 1);
  check(apart < 1e-5, "the error of rounding", apart);
  std::vector<uint16_t> bits(kValues);
  for (uint16_t& value : bits) value = static_cast<uint16_t>(random_bits() & 0xbbff);  // all are finite
  std::vector<float> wide(kValues), same_wide(kValues);
  from.widen_bf16(wide.data(), reinterpret_cast<const bfloat16*>(bits.data()), kValues);
  to.widen_bf16(same_wide.data(), reinterpret_cast<const bfloat16*>(bits.data()), kValues);
  check(wide == same_wide, "widening of bfloat16");
  from.widen_f16(wide.data(), reinterpret_cast<const float16*>(bits.data()), kValues);
  to.widen_f16(same_wide.data(), reinterpret_cast<const float16*>(bits.data()), kValues);
  check(wide == same_wide, "widening of float16");
}

int compare(const std::string& name) {
  const Set generic = HIGGS_NATIVE_SET(generic, generic);
  const Set set = name == "neon"           ? HIGGS_NATIVE_SET(neon, neon)
                  : name == "neon_dotprod" ? HIGGS_NATIVE_SET(neon_dotprod, neon_dotprod)
                  : name == "neon_bf16"    ? HIGGS_NATIVE_SET(neon_bf16, neon_bf16)
                                           : HIGGS_NATIVE_SET(neon_i8mm, neon_bf16);
  compare_linear(generic, set);
  compare_attention<float>(generic, set, "float32");
  compare_attention<bfloat16>(generic, set, "bfloat16");
  compare_attention<float16>(generic, set, "float16");
  compare_audio_tokenizer(generic, set);
  compare_sampling(generic, set);
  compare_quantization(generic, set);
  std::printf("%s: %d comparisons, %d failed\n", name.c_str(), num_checks, num_failures);
  return num_failures == 0 ? 0 : 1;
}

}  // namespace

}  // namespace higgs_native::cpu

int main(int, char** arguments) { return higgs_native::cpu::compare(arguments[1]); }
