// Environment variables that change what is known of a device.
#pragma once

#include <cstdlib>
#include <cstring>

#include "args/checks.h"

namespace higgs_native::cuda {

// Whether variable `name` is anything but 0.
inline bool is_allowed(const char* name) {
  const char* setting = std::getenv(name);
  return !setting || std::strcmp(setting, "0") != 0;
}

inline bool allows_warpgroups() { return is_allowed("HIGGS_NATIVE_WARPGROUPS"); }

// The number of multiprocessors that launches are shaped for: HIGGS_NATIVE_MULTIPROCESSORS, or `device_count` if it is
// not set. So tests choose the kernels of a larger or smaller GPU.
inline int multiprocessors_to_use(int device_count) {
  const char* setting = std::getenv("HIGGS_NATIVE_MULTIPROCESSORS");
  if (!setting || !*setting) return device_count;
  char* end = nullptr;
  const long count = std::strtol(setting, &end, 10);
  HIGGS_CHECK(
      *end == 0 && count >= 1 && count <= 1024, "HIGGS_NATIVE_MULTIPROCESSORS must be from 1 to 1024, got ", setting);
  return static_cast<int>(count);
}

}  // namespace higgs_native::cuda
