// Module higgs_native._C: properties of this build and of this machine. The operators are not here: the libraries beside this
// module register them with torch (see higgs_native/ops/__init__.py). The module uses Python's stable ABI alone, so that one
// wheel serves all versions of Python.
#include <Python.h>

#include <exception>
#include <memory>
#include <string>

#include "cpu/simd/isa.h"
#include "cpu/threads/quota.h"

namespace {

struct Release {
  void operator()(PyObject* object) const { Py_XDECREF(object); }
};
using Object = std::unique_ptr<PyObject, Release>;

// The names of the instruction sets that `chosen` is true of; null after a Python error.
template <typename Predicate>
Object isa_names(Predicate chosen) {
  Object names(PyList_New(0));
  for (higgs_native::cpu::Isa isa : higgs_native::cpu::kIsas) {
    if (!names || !chosen(isa)) continue;
    const Object name(PyUnicode_FromString(higgs_native::cpu::isa_name(isa)));
    if (!name || PyList_Append(names.get(), name.get()) != 0) return nullptr;
  }
  return names;
}

PyObject* build_info(PyObject*, PyObject*) {
  using namespace higgs_native::cpu;
  try {
    const char* active = isa_name(active_isa());
    const std::string features = cpu_features();
    const Object built = isa_names([](Isa) { return true; }), supported = isa_names(isa_supported);
    if (!built || !supported) return nullptr;
    return Py_BuildValue(
        "{s:s, s:s, s:O, s:O, s:s, s:s, s:O, s:s, s:s}", "torch_built_against", HIGGS_NATIVE_TORCH_VERSION, "compiler",
        __VERSION__, "cpu_instruction_sets", built.get(), "cpu_instruction_sets_supported", supported.get(),
        "cpu_instruction_set", active, "cpu_features", features.c_str(), "cuda",
        HIGGS_NATIVE_CUDA_BUILT ? Py_True : Py_False, "cuda_version", HIGGS_NATIVE_CUDA_VERSION, "cuda_architectures",
        HIGGS_NATIVE_CUDA_ARCHITECTURES_BUILT);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyObject* cpu_quota(PyObject*, PyObject* root) {
  const char* path = PyUnicode_AsUTF8AndSize(root, nullptr);
  return path ? PyLong_FromLong(higgs_native::cpu::cpu_quota(path)) : nullptr;
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "Return a dict: torch_built_against, compiler, cpu_instruction_sets (built in), cpu_instruction_sets_supported "
     "(by "
     "this machine), cpu_instruction_set (used), cpu_features, cuda, cuda_version, cuda_architectures."},
    {"cpu_quota", cpu_quota, METH_O,
     "Return the CPUs that the control groups below the folder `root` allow, rounded up, or 0. The empty root is this "
     "machine's."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    "_C",
    "Properties of this build of higgs_native, and of this machine.",
    0,
    methods,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
