// Stands in for libtorch_cuda.so when the CUDA library is linked, so that a machine whose torch has no CUDA can link
// it: it has the symbols that the kernels' host code needs. It is not installed. At run time the dynamic linker finds
// the real library under the same name, which torch has loaded by then.
extern "C" void aoti_torch_get_current_cuda_stream() {}
