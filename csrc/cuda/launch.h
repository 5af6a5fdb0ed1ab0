// Launching kernels on torch's current stream of a tensor's device.
#pragma once

#if !defined(HIGGS_NATIVE_EMULATE_CUDA)
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

#include "args/checks.h"
#include "cuda/device.h"

#if defined(HIGGS_NATIVE_EMULATE_CUDA)
#define HIGGS_NATIVE_CUDA_KEY CPU
#else
#define HIGGS_NATIVE_CUDA_KEY CUDA
#endif

namespace higgs_native::cuda {

// Whether vectors of 16 bytes can be read from there.
inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What all kernels of an operator share. The device of `t` is current for as long as this object lives.
class Launch {
 public:
  Launch(const char* op, const Tensor& t);

  // Runs the kernel with these arguments and `shared_bytes` of dynamic_shared(). With dependent launches the kernel begins
  // before those launched earlier are complete; see wait_for_earlier_launches.
  template <typename... Parameters, typename... Arguments>
  void operator()(
      void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, const Arguments&... arguments) const;

  const char* op() const { return op_; }
  int multiprocessors() const;

 private:
  const char* op_;
#if !defined(HIGGS_NATIVE_EMULATE_CUDA)
  void check(cudaError_t error) const { STD_TORCH_CHECK(error == cudaSuccess, op_, ": ", cudaGetErrorString(error)); }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
  const struct DeviceFacts* facts_;
#endif
};

#if defined(HIGGS_NATIVE_EMULATE_CUDA)

inline Launch::Launch(const char* op, const Tensor&) : op_(op) {}

template <typename... Parameters, typename... Arguments>
void Launch::operator()(
    void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, const Arguments&... arguments) const {
  // Passed by reference: so the arguments stay on the host's stack, which no kernel has ever written to.
  const auto call = [&] { kernel(arguments...); };
  emulation::run(op_, grid, dim3(threads), shared_bytes, std::ref(call));
}

inline int Launch::multiprocessors() const { return 2; }

#else

// What is asked of a device once.
struct DeviceFacts {
  int multiprocessors;
  bool dependent_launches;
};

// HIGGS_NATIVE_DEPENDENT_LAUNCHES=0 turns programmatic dependent launch off, where the device has it (sm_90).
const DeviceFacts& device_facts(int device);

inline Launch::Launch(const char* op, const Tensor& t)
    : op_(op), guard_(t.get_device_index()), facts_(&device_facts(t.get_device_index())) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  stream_ = static_cast<cudaStream_t>(stream);
}

template <typename... Parameters, typename... Arguments>
void Launch::operator()(
    void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, const Arguments&... arguments) const {
  // What a kernel may have without being asked.
  constexpr size_t kUsualSharedBytes = 48 << 10;
  if (shared_bytes > kUsualSharedBytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  }
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream_;
  config.attrs = &attribute;
  config.numAttrs = facts_->dependent_launches ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

inline int Launch::multiprocessors() const { return facts_->multiprocessors; }

#endif

}  // namespace higgs_native::cuda
