// What is asked of a device once, for all launches on it.
#include "cuda/launch.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

namespace higgs_native::cuda {

int multiprocessors_to_use(int otherwise) {
  const char* setting = std::getenv("HIGGS_NATIVE_MULTIPROCESSORS");
  if (!setting || !*setting) return otherwise;
  char* end = nullptr;
  const long count = std::strtol(setting, &end, 10);
  STD_TORCH_CHECK(
      *end == 0 && count >= 1 && count <= 1024, "HIGGS_NATIVE_MULTIPROCESSORS must lie in 1 .. 1024, got ", setting);
  return static_cast<int>(count);
}

#if !defined(HIGGS_NATIVE_EMULATE_CUDA)

namespace {

// Stands for all kernels, which are built for the same architectures.
__global__ void empty_kernel() {}

// Whether a launch that depends on the one before can be captured: there were GPUs with programmatic dependent launch where
// captures of it failed. A trial shows it, since torch does not recover from a capture that fails.
bool captures_dependent_launches() {
  cudaStream_t stream = nullptr;
  if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return false;
  cudaLaunchAttribute attribute = dependent_launch_attribute();
  cudaLaunchConfig_t config = {};
  config.gridDim = config.blockDim = dim3(1);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  bool good = cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed) == cudaSuccess;
  for (int i = 0; i < 2; ++i) good = good && cudaLaunchKernelEx(&config, empty_kernel) == cudaSuccess;
  cudaGraph_t graph = nullptr;
  good = cudaStreamEndCapture(stream, &graph) == cudaSuccess && good;
  cudaGraphExec_t launchable = nullptr;
  good = good && cudaGraphInstantiate(&launchable, graph, 0) == cudaSuccess;
  good = good && cudaGraphLaunch(launchable, stream) == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess;
  if (launchable) cudaGraphExecDestroy(launchable);
  if (graph) cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  cudaGetLastError();  // forgets what failed
  return good;
}

}  // namespace

const DeviceFacts& device_facts(int device) {
  static std::mutex mutex;
  static std::vector<DeviceFacts*> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (static_cast<size_t>(device) >= known.size()) known.resize(device + 1);
  if (!known[device]) {
    const auto check = [device](cudaError_t error) {
      STD_TORCH_CHECK(error == cudaSuccess, "CUDA device ", device, ": ", cudaGetErrorString(error));
    };
    int multiprocessors = 0, major = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    cudaFuncAttributes kernel;
    check(cudaFuncGetAttributes(&kernel, empty_kernel));
    const char* setting = std::getenv("HIGGS_NATIVE_DEPENDENT_LAUNCHES");
    const bool wanted = !setting || std::strcmp(setting, "0") != 0;
    // Kernels compiled for less than sm_90 don't wait, also where the driver translates them for a newer GPU.
    const bool kernels_wait = kernel.ptxVersion >= 90;
    known[device] = new DeviceFacts{
        multiprocessors_to_use(multiprocessors), wanted && major >= 9 && kernels_wait && captures_dependent_launches()};
  }
  return *known[device];
}

#endif

}  // namespace higgs_native::cuda
