// What lets one source serve the host and the device.
#pragma once

#ifdef __CUDACC__
#define DEQ_HOST_DEVICE __host__ __device__
// The bodies of GPU kernels: device code for nvcc, ordinary functions for the emulator of the
// tests.
#define DEQ_DEVICE __device__ __forceinline__
#define DEQ_UNROLL _Pragma("unroll")
#else
#define DEQ_HOST_DEVICE
#define DEQ_DEVICE inline
#define DEQ_UNROLL
#endif
