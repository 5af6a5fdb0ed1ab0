// HIGGS_HOST_DEVICE marks what both backends run: a plain inline function for the C++ compiler, and also a device function
// for nvcc.
#pragma once

#if defined(__CUDACC__)
#define HIGGS_HOST_DEVICE __host__ __device__ inline
#else
#define HIGGS_HOST_DEVICE inline
#endif
