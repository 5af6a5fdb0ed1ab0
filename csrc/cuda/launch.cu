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
  bool captured = cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed) == cudaSuccess;
  for (int i = 0; i < 2; ++i) captured = captured && cudaLaunchKernelEx(&config, empty_kernel) == cudaSuccess;
  cudaGraph_t graph = nullptr;
  captured = cudaStreamEndCapture(stream, &graph) == cudaSuccess && captured;
  cudaGraphExec_t executable = nullptr;
  captured = captured && cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess &&
             cudaGraphLaunch(executable, stream) == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess;
  if (executable) cudaGraphExecDestroy(executable);
  if (graph) cudaGraphDestroy(graph);
  return captured;
}

__device__ int32_t equal_sums = 0;  // of the trial of warpgroups

template <int kColumns>
bool compare_products(int32_t* equal, cudaStream_t stream) {
  compare_products_kernel<bfloat16, kColumns><<<1, kWarpgroup, kTrialSharedBytes<kColumns>, stream>>>(equal);
  compare_products_kernel<float16, kColumns><<<1, kWarpgroup, kTrialSharedBytes<kColumns>, stream>>>(equal);
  return cudaGetLastError() == cudaSuccess;
}

// Whether products of warpgroups have the bits of those of warps. They are all zero in code for another architecture.
bool warpgroup_products_match(cudaStream_t stream) {
  void* address = nullptr;
  if (cudaGetSymbolAddress(&address, equal_sums) != cudaSuccess) return false;
  auto* equal = static_cast<int32_t*>(address);
  int32_t result = 0;
  return compare_products<64>(equal, stream) && compare_products<128>(equal, stream) &&
         compare_products<192>(equal, stream) &&
         cudaMemcpyAsync(&result, equal, sizeof result, cudaMemcpyDeviceToHost, stream) == cudaSuccess &&
         cudaStreamSynchronize(stream) == cudaSuccess && result == 2 * kAllTrialSums;
}

// Runs a trial on a separate stream; a capture of another one may be in progress.
bool succeeds(bool (*trial)(cudaStream_t)) {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  if (cudaThreadExchangeStreamCaptureMode(&mode) != cudaSuccess) return false;
  cudaStream_t stream = nullptr;
  const bool result = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess && trial(stream);
  if (stream) cudaStreamDestroy(stream);
  cudaThreadExchangeStreamCaptureMode(&mode);
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
        allows_warpgroups() && major == 9 && succeeds(warpgroup_products_match)};
  }
  return *known[device];
}

}  // namespace higgs_native::cuda
