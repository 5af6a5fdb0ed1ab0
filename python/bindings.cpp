// Module higgs_native._C: properties of this build and of this machine. The operators are not here: the libraries beside this
// module register them with torch (see higgs_native/ops/__init__.py).
#include <pybind11/pybind11.h>

#include "cpu/simd/isa.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  using namespace higgs_native::cpu;
  py::list built, supported;
  for (Isa isa : kIsas) {
    built.append(isa_name(isa));
    if (isa_supported(isa)) supported.append(isa_name(isa));
  }
  py::dict info;
  info["torch_built_against"] = HIGGS_NATIVE_TORCH_VERSION;
  info["compiler"] = __VERSION__;
  info["cpu_instruction_sets"] = built;
  info["cpu_instruction_sets_supported"] = supported;
  info["cpu_instruction_set"] = isa_name(active_isa());
  info["cpu_features"] = cpu_features();
  info["cuda"] = static_cast<bool>(HIGGS_NATIVE_CUDA_BUILT);
  info["cuda_version"] = HIGGS_NATIVE_CUDA_VERSION;
  info["cuda_architectures"] = HIGGS_NATIVE_CUDA_ARCHITECTURES_BUILT;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Properties of this build of higgs_native, and of this machine.";
  m.def(
      "build_info", &build_info,
      "Return a dict: torch_built_against, compiler, cpu_instruction_sets (built in), "
      "cpu_instruction_sets_supported (by this machine), cpu_instruction_set (used), cpu_features, cuda, "
      "cuda_version, cuda_architectures.");
}
