// The damped fixed-point iteration of a structured cell, all of it in one launch.
// Formulas: docs/algebra.md, section 3. Reference: deq_kernels/ops/cells/reference.py. The CPU's
// counterpart: csrc/cpu/cells/cells.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>

#include "cuda/cells/groups.h"
#include "cuda/cells/rows.h"
#include "cuda/launch.cuh"
#include "torch/arguments.h"

namespace deq {
namespace {

using OptionalTensor = std::optional<Tensor>;

template <typename state_t>
__global__ void __launch_bounds__(kGpuThreads, 2)
    cell_groups_kernel(const __grid_constant__ CellArguments<state_t> arguments,
                       const __grid_constant__ CellPlan plan) {
  solve_groups(DeviceBlock(), arguments, plan);
}

template <typename state_t>
__global__ void __launch_bounds__(kGpuThreads, 2)
    cell_rows_kernel(const __grid_constant__ CellArguments<state_t> arguments,
                     const __grid_constant__ CellPlan plan) {
  solve_rows(DeviceBlock(), arguments, plan);
}

// Blocks of a grid that meets at barriers must all be on the device at once.
template <typename Kernel>
int64_t resident_blocks(Kernel kernel, const GpuDevice& device, int64_t shared_bytes) {
  int each = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kGpuThreads,
                                                           static_cast<size_t>(shared_bytes)),
             "asking how many blocks fit");
  return each * device.multiprocessors;
}

template <typename state_t>
void iterate(CellArguments<state_t> arguments, const Tensor& z) {
  using accum_t = accumulate_t<state_t>;
  const Place place(z);
  constexpr auto groups = &cell_groups_kernel<state_t>;
  constexpr auto rows = &cell_rows_kernel<state_t>;
  const bool grouped = arguments.sample_ptr != nullptr;
  const GpuDevice device = device_facts<groups>(place);
  CellPlan plan = plan_cells({arguments.rows, arguments.dim, arguments.samples, grouped,
                              arguments.accelerate, sizeof(state_t), sizeof(accum_t)},
                             device, forced_regime());
  const int64_t row_doubles = ceil_div(plan.row_scratch * sizeof(accum_t), sizeof(double));
  Scratch scratch(z, /*problems=*/1);
  arguments.sum_scratch = scratch(plan.sum_scratch + row_doubles);
  arguments.row_scratch = reinterpret_cast<accum_t*>(arguments.sum_scratch + plan.sum_scratch);
  if (!grouped) {
    allow_large_launches<rows>(place, device);
    launch_kernel(rows, place, plan.blocks, 1, plan.shared.bytes, arguments, plan);
    return;
  }
  allow_large_launches<groups>(place, device);
  if (plan.regime == GpuRegime::kGrid) {
    plan.blocks = std::min(plan.blocks, resident_blocks(groups, device, plan.shared.bytes));
    launch_together(groups, place, plan.blocks, plan.shared.bytes, arguments, plan);
  } else {
    launch_kernel(groups, place, plan.blocks, plan.cluster, plan.shared.bytes, arguments, plan);
  }
}

void cells_iterate(const Tensor& weight, const OptionalTensor& crow, const OptionalTensor& col,
                   const OptionalTensor& values, const OptionalTensor& sample_ptr,
                   const Tensor& bias, const OptionalTensor& scale, const Tensor& z,
                   const Tensor& record, const Tensor& counters, const Tensor& active,
                   int64_t activation, double rtol, double atol, double damping, int64_t norm,
                   int64_t stall_steps, double divergence_factor, bool fixed_steps,
                   bool accelerate) {
  check_same_device("z", z,
                    {{"weight", &weight},
                     {"bias", &bias},
                     {"record", &record},
                     {"counters", &counters},
                     {"active", &active}});
  for (const auto& [name, tensor] :
       {std::pair{"crow", &crow}, std::pair{"col", &col}, std::pair{"values", &values},
        std::pair{"sample_ptr", &sample_ptr}, std::pair{"scale", &scale}}) {
    if (*tensor) {
      check_same_device("z", z, {{name, &**tensor}});
    }
  }
  const CellsShape shape =
      check_cells_iterate(weight, crow, col, values, sample_ptr, bias, scale, z, record, counters,
                          active, activation, norm, fixed_steps, accelerate);
  check_stopping(rtol, atol, damping, stall_steps, divergence_factor);
  if (shape.samples == 0) {
    return;
  }
  with_state_type(z.scalar_type(), "z", [&](auto value) {
    using state_t = decltype(value);
    CellArguments<state_t> arguments = {};
    arguments.weight = data<state_t>(weight);
    arguments.weight_row_stride = weight.stride(0);
    arguments.weight_k_stride = weight.stride(1);
    if (crow) {
      arguments.crow = data<int64_t>(*crow);
      arguments.col = data<int64_t>(*col);
      arguments.values = data<state_t>(*values);
    }
    if (sample_ptr) {
      arguments.sample_ptr = data<int64_t>(*sample_ptr);
    }
    arguments.bias = data<state_t>(bias);
    arguments.bias_stride = bias.stride(0);
    if (scale) {
      arguments.scale = data<state_t>(*scale);
      arguments.scale_stride = scale->stride(0);
    }
    arguments.z = data<state_t>(z);
    arguments.record = data<double>(record);
    arguments.counters = data<int64_t>(counters);
    arguments.active = data<int64_t>(active);
    arguments.rows = shape.rows;
    arguments.dim = shape.dim;
    arguments.samples = shape.samples;
    arguments.entries = shape.entries;
    arguments.activation = static_cast<Activation>(activation);
    arguments.norm = !sample_ptr && norm == static_cast<int64_t>(NormKind::kRows)
                         ? NormKind::kTwo
                         : static_cast<NormKind>(norm);
    arguments.damping = damping;
    arguments.fixed_steps = fixed_steps;
    arguments.accelerate = accelerate;
    arguments.limits = cell_limits<accumulate_t<state_t>>(
        {rtol, atol, shape.max_steps, stall_steps, divergence_factor,
         /*max_rejections=*/0},
        arguments.norm);
    iterate(arguments, z);
  });
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CUDA, m) {
  m.impl("cells_iterate_", TORCH_BOX(&deq::cells_iterate));
}
