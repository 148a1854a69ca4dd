// The ops of the family `broyden` at the dispatch key CUDA.
// Reference: deq_kernels/ops/broyden/reference.py.
#include "cuda/broyden.h"

#include <torch/csrc/stable/library.h>

#include "cuda/launch.cuh"
#include "torch/arguments.h"

namespace deq {
namespace {

template <typename history_t>
Directions<history_t> directions_of(const Tensor& directions, const Tensor& algebra) {
  return {data<history_t>(directions),  directions.stride(0),  directions.stride(1),
          rows_are_aligned(directions), data<double>(algebra), directions.size(1)};
}

void broyden_step(const Tensor& f_z, const Tensor& z, const Tensor& best_z,
                  const Tensor& directions, const Tensor& algebra, const Tensor& record,
                  const Tensor& counters, const Tensor& active, const Tensor& scratch, double rtol,
                  double atol, double damping, double gamma, int64_t stall_steps,
                  double divergence_factor, bool finish_inverse, bool drop_oldest,
                  bool estimate_gamma, int64_t max_backtracks) {
  check_same_device("z", z,
                    {{"f_z", &f_z},
                     {"best_z", &best_z},
                     {"directions", &directions},
                     {"algebra", &algebra},
                     {"record", &record},
                     {"counters", &counters},
                     {"active", &active},
                     {"scratch", &scratch}});
  const StepShape shape = check_broyden_step(f_z, z, best_z, directions, algebra, record, counters,
                                             active, scratch, kGpuTile);
  check_stopping(rtol, atol, damping, stall_steps, divergence_factor);
  check_finite(gamma, "gamma");
  check_count(max_backtracks, "max_backtracks");
  const Place place(z);
  with_state_and_history_type(z.scalar_type(), directions.scalar_type(), [&](auto s, auto h) {
    using state_t = decltype(s);
    using history_t = decltype(h);
    const BroydenStep<state_t, history_t> step = {
        data<state_t>(f_z),
        f_z.stride(0),
        data<state_t>(z),
        data<state_t>(best_z),
        directions_of<history_t>(directions, algebra),
        data<double>(record),
        data<int64_t>(counters),
        data<int64_t>(active),
        shape.dim,
        {damping,
         gamma,
         finish_inverse,
         drop_oldest,
         estimate_gamma,
         max_backtracks,
         ScaleRangeOf<history_t, accumulate_t<state_t>>::value,
         {rtol, atol, shape.max_steps, stall_steps, divergence_factor, /*max_rejections=*/1}}};
    launch(step, place,
           broyden_step_demand(shape.batch, shape.dim, shape.capacity, sizeof(history_t)),
           [&](int64_t) { return data<double>(scratch); });
  });
}

Tensor broyden_matvec(const Tensor& directions, const Tensor& algebra, const Tensor& rank,
                      const Tensor& x, double scale, bool transpose) {
  check_same_device("x", x, {{"directions", &directions}, {"algebra", &algebra}, {"rank", &rank}});
  const ProductShape shape = check_broyden_matvec(directions, algebra, rank, x, scale);
  const Place place(x);
  Tensor y = torch::stable::empty_like(x);
  const GpuDemand demand =
      product_demand(shape.batch * shape.columns, shape.dim, shape.capacity,
                     directions.element_size(), ProductForm::table_size(shape.capacity));
  Scratch scratch(x, demand.problems);
  with_state_and_history_type(x.scalar_type(), directions.scalar_type(), [&](auto s, auto h) {
    using state_t = decltype(s);
    using history_t = decltype(h);
    const BroydenProduct<state_t, history_t> product = {
        data<state_t>(x),
        data<state_t>(y),
        directions_of<history_t>(directions, algebra),
        data<int64_t>(rank),
        shape.columns,
        shape.dim,
        scale,
        transpose};
    launch(product, place, demand, scratch);
  });
  return y;
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CUDA, m) {
  m.impl("broyden_step_", TORCH_BOX(&deq::broyden_step));
  m.impl("broyden_matvec", TORCH_BOX(&deq::broyden_matvec));
}
