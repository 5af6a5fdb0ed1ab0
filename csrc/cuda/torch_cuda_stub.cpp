// What the linker sees in place of libtorch_cuda.so, so that a machine whose torch has no CUDA can link the CUDA library:
// the symbols that the kernels' host code takes from it. It is not installed. At run time the dynamic linker finds the real
// library, which torch has loaded by then, under the same name.
extern "C" void aoti_torch_get_current_cuda_stream() {}
