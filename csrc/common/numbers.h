// Numbers of 16 bits, as their bits.
#pragma once

#include <cstdint>

namespace higgs_native {

// The upper half of a float32.
struct bfloat16 {
  uint16_t bits;
};

// IEEE's binary16.
struct float16 {
  uint16_t bits;
};

enum class NumberType { float32, bfloat16, float16 };

}  // namespace higgs_native
