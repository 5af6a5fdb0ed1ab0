// Properties of devices, for their launches, and the switch of dependent launches.
#include "cuda/launch.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "cuda/multiprocessors.h"

namespace higgs_native::cuda {
namespace {

std::atomic<bool> dependent_launches_on = true;

void allow_dependent_launches(bool allow) { dependent_launches_on = allow; }

// Represents all kernels, which are built for the same architectures.
__global__ void any_kernel() {}

}  // namespace

bool dependent_launches_allowed() {
  static const bool kept_off = [] {
    const char* setting = std::getenv("HIGGS_NATIVE_DEPENDENT_LAUNCHES");
    return setting && std::strcmp(setting, "0") == 0;
  }();
  return dependent_launches_on && !kept_off;
}

const DeviceProperties& device_properties(int device) {
  static std::mutex mutex;
  static std::vector<DeviceProperties*> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (static_cast<size_t>(device) >= known.size()) known.resize(device + 1);
  if (!known[device]) {
    const auto check = [device](cudaError_t error) {
      HIGGS_CHECK(error == cudaSuccess, "CUDA device ", device, ": ", cudaGetErrorString(error));
    };
    int multiprocessors = 0, major = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    cudaFuncAttributes kernel;
    check(cudaFuncGetAttributes(&kernel, any_kernel));
    // Kernels compiled for less than sm_90 have no griddepcontrol.wait, even if the driver translates them for a newer
    // GPU.
    const bool kernels_wait = kernel.ptxVersion >= 90;
    known[device] = new DeviceProperties{multiprocessors_to_use(multiprocessors), major >= 9 && kernels_wait};
  }
  return *known[device];
}

}  // namespace higgs_native::cuda

STABLE_TORCH_LIBRARY(higgs_native_cuda, m) { m.def("allow_dependent_launches(bool allow) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(higgs_native_cuda, CompositeExplicitAutograd, m) {
  m.impl("allow_dependent_launches", TORCH_BOX(&higgs_native::cuda::allow_dependent_launches));
}
