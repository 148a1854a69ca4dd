// The ops of the family `damped` at the dispatch key CUDA.
// Reference: deq_kernels/ops/damped/reference.py.
#include "cuda/damped.h"

#include <torch/csrc/stable/library.h>

#include "cuda/launch.cuh"
#include "torch/arguments.h"

namespace deq {
namespace {

GpuDemand stream_demand(int64_t batch, int64_t dim, int64_t state_bytes) {
  return {batch, dim, /*rows=*/0, state_bytes, kDecisionDoubles, /*table_doubles=*/0};
}

void damped_step(const Tensor& f_z, const Tensor& z, const Tensor& best_z, const Tensor& record,
                 const Tensor& counters, const Tensor& active, const Tensor& scratch, double rtol,
                 double atol, double damping, int64_t stall_steps, double divergence_factor) {
  check_same_device("z", z,
                    {{"f_z", &f_z},
                     {"best_z", &best_z},
                     {"record", &record},
                     {"counters", &counters},
                     {"active", &active},
                     {"scratch", &scratch}});
  const StepShape shape =
      check_damped_step(f_z, z, best_z, record, counters, active, scratch, kGpuTile);
  check_stopping(rtol, atol, damping, stall_steps, divergence_factor);
  const Place place(z);
  with_state_type(z.scalar_type(), "z", [&](auto value) {
    using state_t = decltype(value);
    DampedStep<state_t> step = {};
    step.f_z = data<state_t>(f_z);
    step.f_stride = f_z.stride(0);
    step.z = data<state_t>(z);
    step.best_z = data<state_t>(best_z);
    step.record = data<double>(record);
    step.counters = data<int64_t>(counters);
    step.active = data<int64_t>(active);
    step.dim = shape.dim;
    step.damping = damping;
    step.limits = {
        rtol, atol, shape.max_steps, stall_steps, divergence_factor, /*max_rejections=*/0};
    launch(step, place, stream_demand(shape.batch, shape.dim, sizeof(state_t)),
           [&](int64_t) { return data<double>(scratch); });
  });
}

void neumann_step(const Tensor& vjp, const Tensor& cotangent, const Tensor& w, const Tensor& norms,
                  double damping) {
  check_same_device("w", w, {{"vjp", &vjp}, {"cotangent", &cotangent}, {"norms", &norms}});
  const NeumannShape shape = check_neumann_step(vjp, cotangent, w, norms, damping);
  const Place place(w);
  Scratch scratch(w, shape.batch);
  with_state_type(w.scalar_type(), "w", [&](auto value) {
    using state_t = decltype(value);
    NeumannStep<state_t> step = {};
    step.vjp = data<state_t>(vjp);
    step.vjp_stride = vjp.stride(0);
    step.cotangent = data<state_t>(cotangent);
    step.cotangent_stride = cotangent.stride(0);
    step.w = data<state_t>(w);
    step.norms = data<double>(norms);
    step.dim = shape.dim;
    step.damping = damping;
    launch(step, place, stream_demand(shape.batch, shape.dim, sizeof(state_t)), scratch);
  });
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CUDA, m) {
  m.impl("damped_step_", TORCH_BOX(&deq::damped_step));
  m.impl("neumann_step_", TORCH_BOX(&deq::neumann_step));
}
