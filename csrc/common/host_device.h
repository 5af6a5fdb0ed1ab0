// HIGGS_HOST_DEVICE marks what both backends run: an inline function for the C++ compiler, and also a device function for
// nvcc. Always inlined, because files that are compiled for several instruction sets use it too: the linker must find no
// copy to merge.
#pragma once

#if defined(__CUDACC__)
#define HIGGS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HIGGS_HOST_DEVICE inline __attribute__((always_inline))
#endif
