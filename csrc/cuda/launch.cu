// Properties of devices, for their launches.
#include "cuda/launch.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "cuda/multiprocessors.h"

namespace higgs_native::cuda {
namespace {

// Represents all kernels, which are built for the same architectures.
__global__ void empty_kernel() {}

// Whether dependent launches can be captured. On some GPUs that have them (sm_120) such captures were reported to fail,
// and torch's allocator does not recover from a failed capture, so a trial without torch decides beforehand.
bool captures_dependent_launches() {
  cudaStream_t stream = nullptr;
  if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return false;
  cudaLaunchAttribute attribute = dependent_launch_attribute();
  cudaLaunchConfig_t config = {};
  config.gridDim = config.blockDim = dim3(1);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  bool succeeds = cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed) == cudaSuccess;
  for (int i = 0; i < 2; ++i) succeeds = succeeds && cudaLaunchKernelEx(&config, empty_kernel) == cudaSuccess;
  cudaGraph_t graph = nullptr;
  succeeds = cudaStreamEndCapture(stream, &graph) == cudaSuccess && succeeds;
  cudaGraphExec_t executable = nullptr;
  succeeds = succeeds && cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess &&
             cudaGraphLaunch(executable, stream) == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess;
  if (executable) cudaGraphExecDestroy(executable);
  if (graph) cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  cudaGetLastError();  // clears the error of a failed trial
  return succeeds;
}

}  // namespace

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
    check(cudaFuncGetAttributes(&kernel, empty_kernel));
    // Kernels compiled for less than sm_90 have no griddepcontrol.wait, even if the driver translates them for a newer
    // GPU.
    const bool kernels_wait = kernel.ptxVersion >= 90;
    const char* setting = std::getenv("HIGGS_NATIVE_DEPENDENT_LAUNCHES");
    const bool allowed = !setting || std::strcmp(setting, "0") != 0;
    known[device] = new DeviceProperties{
        multiprocessors_to_use(multiprocessors),
        allowed && major >= 9 && kernels_wait && captures_dependent_launches()};
  }
  return *known[device];
}

}  // namespace higgs_native::cuda
