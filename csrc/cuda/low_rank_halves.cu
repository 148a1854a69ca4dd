// The halves of the product in the family `low_rank` at the dispatch key CUDA.
// Reference: deq_kernels/ops/low_rank/reference.py.
#include "cuda/low_rank_halves.h"

#include <torch/csrc/stable/library.h>

#include "cuda/launch.cuh"
#include "torch/arguments.h"

namespace deq {
namespace {

Tensor low_rank_dots(const Tensor& rows, const Tensor& count, const Tensor& x) {
  check_same_device("x", x, {{"rows", &rows}, {"count", &count}});
  const ProductShape shape = check_low_rank_dots(rows, count, x);
  const Place place(x);
  Tensor dots =
      torch::stable::new_empty(x, {shape.batch, shape.columns, shape.capacity}, ScalarType::Double);
  GpuDemand demand = product_demand(shape.batch * shape.columns, shape.dim, shape.capacity,
                                    rows.element_size(), 0);
  demand.rows = 0;  // no pass comes back to them
  Scratch scratch(x, demand.problems);
  with_state_and_history_type(x.scalar_type(), rows.scalar_type(), [&](auto s, auto h) {
    using state_t = decltype(s);
    using history_t = decltype(h);
    const LowRankDots<state_t, history_t> op = {data<state_t>(x),
                                                data<double>(dots),
                                                stored_rows<history_t>(rows),
                                                data<int64_t>(count),
                                                shape.capacity,
                                                shape.columns,
                                                shape.dim};
    launch(op, place, demand, scratch);
  });
  return dots;
}

// y = scale x + sum_{i < count} c_i row_i; y may be x.
void combine_into(const Tensor& y, const Tensor& rows, const Tensor& count,
                  const Tensor& coefficients, const Tensor& x, double scale) {
  check_same_device("x", x, {{"rows", &rows}, {"count", &count}, {"coefficients", &coefficients}});
  const ProductShape shape = check_low_rank_combine(rows, count, coefficients, x, scale);
  const Place place(x);
  with_state_and_history_type(x.scalar_type(), rows.scalar_type(), [&](auto s, auto h) {
    using state_t = decltype(s);
    using history_t = decltype(h);
    const LowRankCombination<state_t, history_t> op = {data<state_t>(x),
                                                       data<state_t>(y),
                                                       stored_rows<history_t>(rows),
                                                       data<int64_t>(count),
                                                       data<double>(coefficients),
                                                       shape.capacity,
                                                       shape.columns,
                                                       shape.dim,
                                                       scale};
    launch_tiles(op, place, shape.batch * shape.columns);
  });
}

Tensor low_rank_combine(const Tensor& rows, const Tensor& count, const Tensor& coefficients,
                        const Tensor& x, double scale) {
  Tensor y = torch::stable::empty_like(x);
  combine_into(y, rows, count, coefficients, x, scale);
  return y;
}

Tensor low_rank_project_out(const Tensor& rows, const Tensor& count, const Tensor& x) {
  check_low_rank_project_out(rows, count, x);
  Tensor dots = low_rank_dots(rows, count, x);
  // Each time with the opposite sign, which needs no other coefficients than the dots.
  combine_into(x, rows, count, dots, x, -1.0);
  combine_into(x, rows, count, low_rank_dots(rows, count, x), x, -1.0);
  return dots;
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CUDA, m) {
  m.impl("low_rank_dots", TORCH_BOX(&deq::low_rank_dots));
  m.impl("low_rank_combine", TORCH_BOX(&deq::low_rank_combine));
  m.impl("low_rank_project_out_", TORCH_BOX(&deq::low_rank_project_out));
}
