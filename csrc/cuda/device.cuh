// The block that kernel bodies run in on a GPU. Everything that only a GPU has is in this file.
#pragma once

#include <cooperative_groups.h>
#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "cuda/copy_groups.h"
#include "cuda/plan.h"

// What assert() calls, without its dependence on NDEBUG. Known to the compiler, declared nowhere.
extern "C" __device__ void __assertfail(const char* message, const char* file, unsigned line,
                                        const char* function, size_t char_size);

namespace deq {

extern __shared__ __align__(16) char dynamic_shared[];

struct DeviceBlock {
  __device__ __forceinline__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ int lane() const { return thread() % kGpuWarp; }
  __device__ __forceinline__ int warp() const { return thread() / kGpuWarp; }
  __device__ __forceinline__ int64_t index() const { return blockIdx.x; }
  __device__ __forceinline__ int64_t blocks() const { return gridDim.x; }
  __device__ __forceinline__ char* shared() const { return dynamic_shared; }

  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ void sync_warp() const { __syncwarp(); }

  template <typename T>
  __device__ __forceinline__ T shuffle_xor(T value, int mask) const {
    return __shfl_xor_sync(0xffffffffu, value, mask);
  }

  // Clusters came with compute capability 9.0; before, every block is a cluster of its own.
#if __CUDA_ARCH__ >= 900
  __device__ __forceinline__ int rank() const {
    return static_cast<int>(cooperative_groups::this_cluster().block_rank());
  }
  __device__ __forceinline__ int ranks() const {
    return static_cast<int>(cooperative_groups::this_cluster().num_blocks());
  }
  __device__ __forceinline__ void sync_cluster() const {
    if (ranks() == 1) {
      __syncthreads();
    } else {
      cooperative_groups::this_cluster().sync();
    }
  }
  // The same place in the shared memory of another block of the cluster.
  template <typename T>
  __device__ __forceinline__ const T* of_rank(const T* mine, int rank) const {
    return ranks() == 1 ? mine
                        : cooperative_groups::this_cluster().map_shared_rank(
                              const_cast<T*>(mine), static_cast<unsigned>(rank));
  }
#else
  __device__ __forceinline__ int rank() const { return 0; }
  __device__ __forceinline__ int ranks() const { return 1; }
  __device__ __forceinline__ void sync_cluster() const { __syncthreads(); }
  template <typename T>
  __device__ __forceinline__ const T* of_rank(const T* mine, int) const {
    return mine;
  }
#endif
  __device__ __forceinline__ int64_t problem() const { return index() / ranks(); }

  // Of a grid that was launched as a whole: what was written before is seen by all of it.
  __device__ __forceinline__ void sync_grid() const { cooperative_groups::this_grid().sync(); }

  // 16 bytes, past the registers; both ends aligned.
  __device__ __forceinline__ void copy_async(const void* from, void* to) const {
    __pipeline_memcpy_async(to, from, 16);
  }
  __device__ __forceinline__ void commit_copies() const { __pipeline_commit(); }
  // Waits until at most `pending` committed groups are under way.
  __device__ __forceinline__ void wait_for_copies(int64_t pending) const {
    wait_with_constant(pending, [](auto constant) { __pipeline_wait_prior(constant.value); });
  }

  __device__ __forceinline__ void subtract_one(int64_t* count) const {
    atomicAdd(reinterpret_cast<unsigned long long*>(count), ~0ull);
  }

  // The host must not wait for a look at a device's tables, so the device itself checks them; what
  // fails here prints the contract and ends the process's use of the GPU, as a bad index in a
  // gather does.
  __device__ __forceinline__ void check(bool holds, const char* contract) const {
    if (!holds) {
      __assertfail(contract, "deq_kernels", 0, "a kernel", sizeof(char));
    }
  }
};

}  // namespace deq
