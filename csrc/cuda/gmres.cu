// The step of GMRES at the dispatch key CUDA.
// Reference: deq_kernels/ops/gmres/reference.py.
#include "cuda/gmres.h"

#include <torch/csrc/stable/library.h>

#include "cuda/launch.cuh"
#include "torch/arguments.h"

namespace deq {
namespace {

void gmres_step(const Tensor& f_z, const Tensor& z, const Tensor& best_z, const Tensor& basis,
                const Tensor& start, const Tensor& start_residual, const Tensor& algebra,
                const Tensor& record, const Tensor& counters, const Tensor& active,
                const Tensor& scratch, double rtol, double atol, int64_t stall_steps,
                double divergence_factor) {
  check_same_device("z", z,
                    {{"f_z", &f_z},
                     {"best_z", &best_z},
                     {"basis", &basis},
                     {"start", &start},
                     {"start_residual", &start_residual},
                     {"algebra", &algebra},
                     {"record", &record},
                     {"counters", &counters},
                     {"active", &active},
                     {"scratch", &scratch}});
  const StepShape shape = check_gmres_step(f_z, z, best_z, basis, start, start_residual, algebra,
                                           record, counters, active, scratch, kGpuTile);
  check_stopping(rtol, atol, /*damping=*/1.0, stall_steps, divergence_factor);
  const Place place(z);
  with_state_type(z.scalar_type(), "z", [&](auto value) {
    using state_t = decltype(value);
    using accum_t = accumulate_t<state_t>;
    const GmresProblem<state_t> problem = {
        data<state_t>(f_z),
        f_z.stride(0),
        data<state_t>(z),
        data<state_t>(best_z),
        stored_rows<accum_t>(basis),
        data<accum_t>(start),
        data<accum_t>(start_residual),
        data<double>(algebra),
        data<double>(record),
        data<int64_t>(counters),
        data<int64_t>(active),
        shape.dim,
        shape.capacity,
        gmres_options<state_t>({rtol, atol, shape.max_steps, stall_steps, divergence_factor,
                                /*max_rejections=*/1})};
    const GpuDemand demand =
        gmres_step_demand(shape.batch, shape.dim, shape.capacity, sizeof(accum_t));
    const auto room = [&](int64_t) { return data<double>(scratch); };
    launch(GmresEvaluation<state_t>{problem}, place, demand, room);
    launch(GmresImage<state_t>{problem}, place, demand, room);
  });
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CUDA, m) {
  m.impl("gmres_step_", TORCH_BOX(&deq::gmres_step));
}
