// HIGGS_HOST_DEVICE marks a function of both backends: inline for the C++ compiler, and also a device function for
// nvcc. It is always inlined, because files compiled for several instruction sets use it: the linker must find no copy
// to merge.
#pragma once

#if defined(__CUDACC__)
#define HIGGS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HIGGS_HOST_DEVICE inline __attribute__((always_inline))
#endif
