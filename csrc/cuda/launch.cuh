// Kernels around the bodies of two_pass.h, and their launch on torch's current stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "cuda/device.cuh"
#include "cuda/regime.h"
#include "cuda/stored_rows.h"
#include "cuda/two_pass.h"
#include "torch/checks.h"

namespace deq {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // or it would be taken for an error of torch's next call
    STD_TORCH_CHECK(false, what, " failed: ", cudaGetErrorString(error));
  }
}

// Two blocks per multiprocessor hide each other's barriers; 128 registers per thread allow it.
template <typename Op>
__global__ void __launch_bounds__(kGpuThreads, 2)
    fused_kernel(const __grid_constant__ Op op, const SharedLayout layout, int64_t tiles,
                 int64_t own_tiles, int64_t kept_rows) {
  fused_pass(DeviceBlock(), op, layout, tiles, own_tiles, kept_rows);
}

template <typename Op>
__global__ void __launch_bounds__(kGpuThreads, 2)
    measure_kernel(const __grid_constant__ Op op, const GridScratch scratch) {
  measure_pass(DeviceBlock(), op, scratch);
}

template <typename Op>
__global__ void __launch_bounds__(kGpuThreads, 1)
    conclude_kernel(const __grid_constant__ Op op, const GridScratch scratch,
                    const SharedLayout layout, bool staged) {
  conclude_pass(DeviceBlock(), op, scratch, layout, staged);
}

template <typename Op>
__global__ void __launch_bounds__(kGpuThreads, 2)
    apply_kernel(const __grid_constant__ Op op, const GridScratch scratch) {
  apply_pass(DeviceBlock(), op, scratch);
}

template <typename Op>
__global__ void __launch_bounds__(kGpuThreads, 2)
    tile_kernel(const __grid_constant__ Op op, int64_t tiles) {
  tile_pass(DeviceBlock(), op, tiles);
}

// The device and stream an op runs on: those of its first tensor.
class Place {
 public:
  explicit Place(const Tensor& tensor)
      : index_(tensor.get_device_index()), guard_(index_), stream_(nullptr) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  int index() const { return index_; }
  cudaStream_t stream() const { return stream_; }

  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, index_), "cudaDeviceGetAttribute");
    return value;
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

// Lets a kernel have all the shared memory of a block, and clusters beyond the portable eight; once
// per kernel and device. A parameter of its type alone would let kernels that take the same
// arguments share what is known of them.
template <auto kKernel>
void allow_large_launches(const Place& place, const GpuDevice& device) {
  static std::atomic<uint64_t> done{0};
  const uint64_t bit = uint64_t(1) << (place.index() % 64);
  if (done.load(std::memory_order_acquire) & bit) {
    return;
  }
  const auto* function = reinterpret_cast<const void*>(kKernel);
  check_cuda(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(device.shared_bytes)),
             "raising a kernel's shared memory");
  if (device.max_cluster > 8) {
    check_cuda(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
               "allowing a kernel larger clusters");
  }
  done.fetch_or(bit, std::memory_order_release);
}

template <typename... Parameters, typename... Arguments>
void launch_with(cudaLaunchAttribute* attribute, void (*kernel)(Parameters...), const Place& place,
                 int64_t blocks, int64_t shared_bytes, const Arguments&... arguments) {
  STD_TORCH_CHECK(blocks <= INT32_MAX, "a launch has at most 2^31 - 1 blocks, but this one needs ",
                  blocks, "; split the batch");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kGpuThreads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = place.stream();
  config.attrs = attribute;
  config.numAttrs = attribute != nullptr ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, arguments...), "launching a kernel");
}

template <typename... Parameters, typename... Arguments>
void launch_kernel(void (*kernel)(Parameters...), const Place& place, int64_t blocks,
                   int64_t cluster, int64_t shared_bytes, const Arguments&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  launch_with(cluster > 1 ? &attribute : nullptr, kernel, place, blocks, shared_bytes,
              arguments...);
}

// For a kernel whose blocks meet at barriers of the whole grid.
template <typename... Parameters, typename... Arguments>
void launch_together(void (*kernel)(Parameters...), const Place& place, int64_t blocks,
                     int64_t shared_bytes, const Arguments&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  launch_with(&attribute, kernel, place, blocks, shared_bytes, arguments...);
}

// The facts about a device that the planner asks for. The largest cluster of the kernel's blocks is
// what the hardware has room for, which a part of a partitioned GPU may not.
template <auto kKernel>
GpuDevice device_facts(const Place& place) {
  static std::atomic<int> largest_cluster[64] = {};
  GpuDevice device = {place.attribute(cudaDevAttrMultiProcessorCount),
                      place.attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), 1};
  std::atomic<int>& cached = largest_cluster[place.index() % 64];
  int cluster = cached.load(std::memory_order_acquire);
  if (cluster == 0) {
    cluster = 1;
    if (place.attribute(cudaDevAttrClusterLaunch)) {
      device.max_cluster = 16;
      allow_large_launches<kKernel>(place, device);
      cudaLaunchConfig_t config = {};
      config.gridDim = dim3(16);
      config.blockDim = dim3(kGpuThreads);
      config.dynamicSmemBytes = static_cast<size_t>(device.shared_bytes);
      check_cuda(cudaOccupancyMaxPotentialClusterSize(&cluster, kKernel, &config),
                 "asking for the largest cluster");
    }
    cached.store(cluster, std::memory_order_release);
  }
  device.max_cluster = cluster;
  return device;
}

// Runs an op. `room` gives room for GridScratch::size(demand.sums, tiles) doubles per problem where
// the plan is a grid, and keeps it until all kernels have been launched.
template <typename Op, typename Room>
void launch(const Op& op, const Place& place, const GpuDemand& demand, Room&& room) {
  if (demand.problems == 0) {
    return;
  }
  const GpuDevice device = device_facts<&fused_kernel<Op>>(place);
  const GpuPlan plan = plan_gpu(demand, device, forced_regime());
  if (plan.regime != GpuRegime::kGrid) {
    allow_large_launches<&fused_kernel<Op>>(place, device);
    launch_kernel(&fused_kernel<Op>, place, demand.problems * plan.cluster, plan.cluster,
                  plan.shared.bytes, op, plan.shared, plan.tiles, plan.own_tiles, plan.kept_rows);
    return;
  }
  const GridScratch scratch = {room(GridScratch::size(demand.sums, plan.tiles)), demand.sums,
                               plan.tiles};
  const int64_t blocks = demand.problems * plan.tiles;
  constexpr int64_t kFlushBytes = kGpuWarps * kFlushValues * sizeof(double);
  if (blocks > 0) {
    launch_kernel(&measure_kernel<Op>, place, blocks, 1, kFlushBytes, op, scratch);
  }
  allow_large_launches<&conclude_kernel<Op>>(place, device);
  launch_kernel(&conclude_kernel<Op>, place, demand.problems, 1, plan.shared.bytes, op, scratch,
                plan.shared, plan.table_staged);
  if constexpr (!std::is_same_v<typename Op::Decision, NoSecondPass>) {
    if (blocks > 0) {
      launch_kernel(&apply_kernel<Op>, place, blocks, 1, 0, op, scratch);
    }
  }
}

// Runs an op that is a second pass alone.
template <typename Op>
void launch_tiles(const Op& op, const Place& place, int64_t problems) {
  const int64_t tiles = gpu_tiles(op.dim);
  if (problems * tiles > 0) {
    launch_kernel(&tile_kernel<Op>, place, problems * tiles, 1, 0, op, tiles);
  }
}

// Scratch for an op that is given none: a tensor of torch's, made where it is asked for. It must
// outlive the launches of the kernels that use it, but not the kernels: memory that is let go of
// goes to what follows on the stream, if not to another thread's launches before that.
class Scratch {
 public:
  Scratch(const Tensor& like, int64_t problems) : like_(like), problems_(problems) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  double* operator()(int64_t doubles_per_problem) {
    memory_ =
        torch::stable::new_empty(like_, {problems_ * doubles_per_problem}, ScalarType::Double);
    return data<double>(*memory_);
  }

 private:
  const Tensor& like_;
  int64_t problems_;
  std::optional<Tensor> memory_;
};

// Whether every row of a [batch, rows, dim] tensor begins on 16 bytes.
inline bool rows_are_aligned(const Tensor& rows) {
  const int64_t element = rows.element_size();
  return reinterpret_cast<uintptr_t>(rows.data_ptr()) % 16 == 0 &&
         rows.stride(0) * element % 16 == 0 && rows.stride(1) * element % 16 == 0;
}

template <typename history_t>
StoredRows<history_t> stored_rows(const Tensor& rows) {
  return {data<history_t>(rows), rows.stride(0), rows.stride(1), rows_are_aligned(rows)};
}

}  // namespace deq
