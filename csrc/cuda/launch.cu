// What is asked of a device once, for all launches on it.
#include "cuda/launch.h"

#if !defined(HIGGS_NATIVE_EMULATE_CUDA)
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

namespace higgs_native::cuda {

const DeviceFacts& device_facts(int device) {
  static std::mutex mutex;
  static std::vector<DeviceFacts*> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (static_cast<size_t>(device) >= known.size()) known.resize(device + 1);
  if (!known[device]) {
    const char* setting = std::getenv("HIGGS_NATIVE_DEPENDENT_LAUNCHES");
    int multiprocessors = 0, major = 0;
    const bool asked =
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess;
    STD_TORCH_CHECK(asked, "CUDA device ", device, " does not answer");
    known[device] = new DeviceFacts{multiprocessors, major >= 9 && !(setting && std::strcmp(setting, "0") == 0)};
  }
  return *known[device];
}

}  // namespace higgs_native::cuda
#endif
