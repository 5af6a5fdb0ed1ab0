// Launching kernels on torch's current stream of a tensor's device. The emulation on the CPU defines the same class in
// emulation/launch.h.
#pragma once

#if defined(HIGGS_NATIVE_EMULATE_CUDA)
#include "cuda/emulation/launch.h"
#else

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/shim_utils.h>

#include "args/checks.h"
#include "cuda/device.h"
#include "cuda/operator_call.h"

#define HIGGS_NATIVE_CUDA_KEY CUDA

namespace higgs_native::cuda {

// Properties of a device, queried once.
struct DeviceProperties {
  int multiprocessors;
  // Whether kernels may start before earlier launches are complete (sm_90 and above): the device can do it, also in a
  // capture, the kernels were compiled to wait, and HIGGS_NATIVE_DEPENDENT_LAUNCHES is not 0.
  bool dependent_launches;
  // Whether products of warpgroups (cuda/warpgroup.h) are used: the device has them, with the bits of those of warps,
  // and HIGGS_NATIVE_WARPGROUPS is not 0.
  bool warpgroups;
};

// The device must be current.
const DeviceProperties& device_properties(int device);

inline cudaLaunchAttribute dependent_launch_attribute() {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return attribute;
}

// The launches of an operator. The device of `t` is current as long as this object lives.
class Launch {
 public:
  Launch(const char* op, const Tensor& t)
      : op_(op), guard_(t.get_device_index()), properties_(&device_properties(t.get_device_index())) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // Runs the kernel with these arguments and `shared_bytes` of dynamic_shared(). With dependent launches the kernel
  // starts before earlier ones are complete; see wait_for_earlier_launches.
  template <typename... Parameters, typename... Arguments>
  void operator()(
      void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, const Arguments&... arguments) const {
    // A kernel has 48 KB without asking for them, less its static memory, which is below 8 KB beside a dynamic one.
    constexpr size_t kDefaultSharedBytes = 40 << 10;
    if (shared_bytes > kDefaultSharedBytes) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
    }
    cudaLaunchAttribute attribute = dependent_launch_attribute();
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    config.attrs = &attribute;
    config.numAttrs = properties_->dependent_launches ? 1 : 0;
    call_.launches();
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
  }

  const char* op() const { return op_; }
  int multiprocessors() const { return properties_->multiprocessors; }
  bool has_warpgroups() const { return properties_->warpgroups; }
  // Whether the operator call has not launched anything yet: see wait_for_earlier_launches.
  bool is_first() const { return !call_.has_launched(); }

 private:
  void check(cudaError_t error) const { HIGGS_CHECK(error == cudaSuccess, op_, ": ", cudaGetErrorString(error)); }

  const char* op_;
  OperatorCall call_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
  const DeviceProperties* properties_;
};

}  // namespace higgs_native::cuda

#endif

namespace higgs_native::cuda {

// Whether vectors of 16 bytes can be read from p.
inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace higgs_native::cuda
