// Launching kernels on torch's current stream of a tensor's device.
#pragma once

#if !defined(HIGGS_NATIVE_EMULATE_CUDA)
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/shim_utils.h>
#endif

#include "common/checks.h"
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

// HIGGS_NATIVE_MULTIPROCESSORS, or `otherwise` if it is not set: tests choose the kernels of a larger or a smaller GPU with it.
int multiprocessors_to_use(int otherwise);

// A call of an operator, by the thread that makes this object. Operators that it runs meanwhile are part of the call.
class OperatorCall {
 public:
  OperatorCall() : outer_(current_), outermost_(outer_ ? outer_->outermost_ : this) {
    current_ = this;
#if defined(HIGGS_NATIVE_EMULATE_CUDA)
    if (!outer_) number_ = emulation::begin_operator();
#endif
  }
  ~OperatorCall() { current_ = outer_; }
  OperatorCall(const OperatorCall&) = delete;

  bool has_launched() const { return outermost_->has_launched_; }
  void launches() const { outermost_->has_launched_ = true; }
#if defined(HIGGS_NATIVE_EMULATE_CUDA)
  uint32_t number() const { return outermost_->number_; }
#endif

 private:
  inline static thread_local const OperatorCall* current_ = nullptr;

  const OperatorCall* outer_;
  const OperatorCall* outermost_;
  mutable bool has_launched_ = false;
#if defined(HIGGS_NATIVE_EMULATE_CUDA)
  uint32_t number_ = 0;
#endif
};

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
  // Whether the operator, with the one that runs it, has not launched anything yet: see wait_for_earlier_launches.
  bool is_first() const { return !call_.has_launched(); }

 private:
  const char* op_;
  OperatorCall call_;
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
  call_.launches();
  emulation::run(op_, call_.number(), grid, dim3(threads), shared_bytes, std::ref(call));
}

inline int Launch::multiprocessors() const { return multiprocessors_to_use(2); }

#else

// What is asked of a device once.
struct DeviceFacts {
  int multiprocessors;
  bool
      dependent_launches;  // it has programmatic dependent launch (sm_90), and HIGGS_NATIVE_DEPENDENT_LAUNCHES is not 0
};

// The device must be current.
const DeviceFacts& device_facts(int device);

inline cudaLaunchAttribute dependent_launch_attribute() {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return attribute;
}

inline int32_t checked_device(const char* op, const Tensor& t) {
  STD_TORCH_CHECK(t.is_cuda(), op, ": all tensors must be on one CUDA device, got one on the CPU");
  return t.get_device_index();
}

inline Launch::Launch(const char* op, const Tensor& t)
    : op_(op), guard_(checked_device(op, t)), facts_(&device_facts(t.get_device_index())) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
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
  cudaLaunchAttribute attribute = dependent_launch_attribute();
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream_;
  config.attrs = &attribute;
  config.numAttrs = facts_->dependent_launches ? 1 : 0;
  call_.launches();
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

inline int Launch::multiprocessors() const { return facts_->multiprocessors; }

#endif

}  // namespace higgs_native::cuda
