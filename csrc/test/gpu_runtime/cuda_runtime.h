// What the launches of csrc/cuda ask of the CUDA runtime. A kernel runs where it is launched, under
// the block emulator. Like the other headers of this folder it is found before the real one, by the
// one test that compiles those files for the host, csrc/test/gpu_library_test.cpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "test/emulator.h"

#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

using cudaStream_t = void*;

enum cudaError_t { cudaSuccess };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrClusterLaunch
};
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMultiProcessorCount            ? 4
           : which == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 232448
                                                              : 1;
  return cudaSuccess;
}

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributeNonPortableClusterSizeAllowed
};
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

struct dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;

  dim3() = default;
  explicit dim3(unsigned x_) : x(x_) {}
};

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension, cudaLaunchAttributeCooperative };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

template <typename Kernel>
cudaError_t cudaOccupancyMaxPotentialClusterSize(int* blocks, Kernel, const cudaLaunchConfig_t*) {
  *blocks = 4;
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}

namespace deq_test {

// The block whose kernel begins to run.
inline const Emulator::Block*& running_block() {
  static const Emulator::Block* block = nullptr;
  return block;
}

}  // namespace deq_test

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  using deq_test::Emulator;
  int64_t ranks = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    // A grid that meets at barriers runs as one cluster.
    ranks = attribute.id == cudaLaunchAttributeCooperative ? config->gridDim.x
                                                           : attribute.val.clusterDim.x;
  }
  Emulator().run(config->gridDim.x / ranks, static_cast<int>(ranks),
                 static_cast<int64_t>(config->dynamicSmemBytes), [&](const Emulator::Block& block) {
                   deq_test::running_block() = &block;
                   kernel(arguments...);
                 });
  return cudaSuccess;
}
