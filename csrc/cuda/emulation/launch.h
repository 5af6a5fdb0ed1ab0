// cuda/launch.h on the CPU: an operator's launches run at once, on the calling thread. If HIGGS_NATIVE_RECORD_LAUNCHES
// names a file, they are written there instead, and nothing is computed: so the launches of real shapes are known at once.
#pragma once

#include <functional>

#include "args/checks.h"
#include "cuda/device.h"
#include "cuda/settings.h"
#include "cuda/operator_call.h"

#define HIGGS_NATIVE_CUDA_KEY CPU

namespace higgs_native::cuda {

class Launch {
 public:
  Launch(const char* op, const Tensor&) : op_(op) {}

  template <typename... Parameters, typename... Arguments>
  void operator()(
      void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, const Arguments&... arguments) const {
    // By reference, so that the arguments stay on the host's stack, which no kernel has written to.
    const auto call = [&] { kernel(arguments...); };
    call_.launches();
    const int64_t prefetched = (int64_t{0} + ... + prefetched_bytes(arguments));
    if (emulation::record_launch(op_, reinterpret_cast<const void*>(kernel), grid, threads, shared_bytes, prefetched)) {
      return;
    }
    emulation::run(op_, call_.number(), grid, dim3(threads), shared_bytes, std::ref(call));
  }

  const char* op() const { return op_; }
  int multiprocessors() const { return multiprocessors_to_use(2); }
  bool has_warpgroups() const { return allows_warpgroups(); }
  bool is_first() const { return !call_.has_launched(); }

 private:
  // The bytes of later launches' weights that a kernel with this argument prefetches.
  template <typename T>
  static int64_t prefetched_bytes(const T& argument) {
    if constexpr (requires { argument.prefetched_bytes(); }) return argument.prefetched_bytes();
    else return 0;
  }

  const char* op_;
  OperatorCall call_{emulation::begin_operator};
};

}  // namespace higgs_native::cuda
