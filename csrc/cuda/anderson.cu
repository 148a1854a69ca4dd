// The Anderson step at the dispatch key CUDA.
// Reference: deq_kernels/ops/anderson/reference.py.
#include "cuda/anderson.h"

#include <torch/csrc/stable/library.h>

#include "cuda/launch.cuh"
#include "torch/arguments.h"

namespace deq {
namespace {

void anderson_step(const Tensor& f_z, const Tensor& z, const Tensor& best_z,
                   const Tensor& residual_changes, const Tensor& image_changes,
                   const Tensor& last_residual, const Tensor& algebra, const Tensor& record,
                   const Tensor& counters, const Tensor& active, const Tensor& scratch, double rtol,
                   double atol, double damping, double regularization, int64_t stall_steps,
                   double divergence_factor) {
  check_same_device("z", z,
                    {{"f_z", &f_z},
                     {"best_z", &best_z},
                     {"residual_changes", &residual_changes},
                     {"image_changes", &image_changes},
                     {"last_residual", &last_residual},
                     {"algebra", &algebra},
                     {"record", &record},
                     {"counters", &counters},
                     {"active", &active},
                     {"scratch", &scratch}});
  const StepShape shape =
      check_anderson_step(f_z, z, best_z, residual_changes, image_changes, last_residual, algebra,
                          record, counters, active, scratch, kGpuTile);
  check_stopping(rtol, atol, damping, stall_steps, divergence_factor);
  check_not_negative(regularization, "regularization");
  const Place place(z);
  with_state_and_history_type(z.scalar_type(), residual_changes.scalar_type(), [&](auto s, auto h) {
    using state_t = decltype(s);
    using history_t = decltype(h);
    const AndersonStep<state_t, history_t> step = {
        data<state_t>(f_z),
        f_z.stride(0),
        data<state_t>(z),
        data<state_t>(best_z),
        stored_rows<history_t>(residual_changes),
        stored_rows<history_t>(image_changes),
        data<state_t>(last_residual),
        data<double>(algebra),
        data<double>(record),
        data<int64_t>(counters),
        data<int64_t>(active),
        shape.dim,
        shape.capacity,
        {damping,
         regularization,
         dependent_share<history_t, accumulate_t<state_t>>(),
         ScaleRangeOf<history_t, accumulate_t<state_t>>::value,
         {rtol, atol, shape.max_steps, stall_steps, divergence_factor, /*max_rejections=*/1}}};
    launch(step, place,
           anderson_step_demand(shape.batch, shape.dim, shape.capacity, sizeof(history_t)),
           [&](int64_t) { return data<double>(scratch); });
  });
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CUDA, m) {
  m.impl("anderson_step_", TORCH_BOX(&deq::anderson_step));
}
