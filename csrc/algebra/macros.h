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

// For loops that the host has as well, whose further unrolling takes registers that others need.
#ifdef __CUDA_ARCH__
#define DEQ_UNROLL_TWICE _Pragma("unroll 2")
#else
#define DEQ_UNROLL_TWICE
#endif
