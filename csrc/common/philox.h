// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1,
// 2, 3" (SC 2011): four random words are a pure function of a 64-bit key and a 128-bit counter.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace higgs_native {

struct PhiloxWords {
  uint32_t word[4];
};

HIGGS_HOST_DEVICE PhiloxWords philox4x32_10(PhiloxWords counter, uint64_t key) {
  uint32_t key_low = static_cast<uint32_t>(key), key_high = static_cast<uint32_t>(key >> 32);
  uint32_t* x = counter.word;
  for (int round = 0; round < 10; ++round) {
    uint64_t a = static_cast<uint64_t>(0xD2511F53u) * x[0];
    uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * x[2];
    x[0] = static_cast<uint32_t>(b >> 32) ^ x[1] ^ key_low;
    x[1] = static_cast<uint32_t>(b);
    x[2] = static_cast<uint32_t>(a >> 32) ^ x[3] ^ key_high;
    x[3] = static_cast<uint32_t>(a);
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return counter;
}

}  // namespace higgs_native
