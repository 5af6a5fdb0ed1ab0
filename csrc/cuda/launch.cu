// Properties of devices, for their launches.
#include "cuda/launch.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

namespace higgs_native::cuda {

const DeviceProperties& device_properties(int device) {
  static std::mutex mutex;
  static std::vector<DeviceProperties*> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (static_cast<size_t>(device) >= known.size()) known.resize(device + 1);
  if (!known[device]) {
    const char* setting = std::getenv("HIGGS_NATIVE_DEPENDENT_LAUNCHES");
    int multiprocessors = 0, major = 0;
    const bool answered =
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess;
    HIGGS_CHECK(answered, "CUDA device ", device, " must answer, got an error");
    known[device] = new DeviceProperties{multiprocessors, major >= 9 && !(setting && std::strcmp(setting, "0") == 0)};
  }
  return *known[device];
}

}  // namespace higgs_native::cuda
