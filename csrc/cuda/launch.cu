// Properties of devices, for their launches.
#include "cuda/launch.h"

#include <mutex>
#include <vector>

#include "cuda/settings.h"
#include "cuda/warpgroup_trial.h"

namespace higgs_native::cuda {
namespace {

// Represents all kernels, which are built for the same architectures.
__global__ void empty_kernel() {}

// Whether dependent launches can be captured. On some GPUs that have them (sm_120) such captures were reported to fail,
// and torch's allocator does not recover from a failed capture, so a trial without torch decides beforehand.
bool captures_dependent_launches(cudaStream_t stream) {
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
  return succeeds;
}

__device__ int32_t trial_differences = 0;

// Whether products of warpgroups have the bits of those of warps. They are all zero in code for another architecture.
bool multiplies_alike(cudaStream_t stream) {
  void* differences = nullptr;
  if (cudaGetSymbolAddress(&differences, trial_differences) != cudaSuccess) return false;
  auto* count = static_cast<int32_t*>(differences);
  compare_products_kernel<bfloat16><<<1, kWarpgroup, kTrialSharedBytes, stream>>>(count);
  compare_products_kernel<float16><<<1, kWarpgroup, kTrialSharedBytes, stream>>>(count);
  int32_t result = 1;
  return cudaMemcpyAsync(&result, differences, sizeof result, cudaMemcpyDeviceToHost, stream) == cudaSuccess &&
         cudaStreamSynchronize(stream) == cudaSuccess && result == 0;
}

// Runs a trial on a stream of its own.
bool succeeds(bool (*trial)(cudaStream_t)) {
  cudaStream_t stream = nullptr;
  if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return false;
  const bool result = trial(stream);
  cudaStreamDestroy(stream);
  cudaGetLastError();  // clears the error of a failed trial
  return result;
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
    const bool allows_dependents = is_allowed("HIGGS_NATIVE_DEPENDENT_LAUNCHES");
    known[device] = new DeviceProperties{
        multiprocessors_to_use(multiprocessors),
        allows_dependents && major >= 9 && kernels_wait && succeeds(captures_dependent_launches),
        allows_warpgroups() && succeeds(multiplies_alike)};
  }
  return *known[device];
}

}  // namespace higgs_native::cuda
