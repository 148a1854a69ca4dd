// The ops of the family `low_rank` at the dispatch key CUDA.
// Reference: deq_kernels/ops/low_rank/reference.py.
#include "cuda/low_rank.h"

#include <torch/csrc/stable/library.h>

#include "cuda/launch.cuh"
#include "torch/arguments.h"

namespace deq {
namespace {

Tensor low_rank_matvec(const Tensor& u, const Tensor& v, const Tensor& rank, const Tensor& x,
                       double scale) {
  check_same_device("x", x, {{"u", &u}, {"v", &v}, {"rank", &rank}});
  const ProductShape shape = check_low_rank_matvec(u, v, rank, x, scale);
  const Place place(x);
  Tensor y = torch::stable::empty_like(x);
  GpuDemand demand =
      product_demand(shape.batch * shape.columns, shape.dim, shape.capacity, v.element_size(), 0);
  demand.rows = 0;  // the second pass reads others
  Scratch scratch(x, demand.problems);
  with_state_and_history_type(x.scalar_type(), v.scalar_type(), [&](auto s, auto h) {
    using state_t = decltype(s);
    using history_t = decltype(h);
    const LowRankProduct<state_t, history_t> product = {data<state_t>(x),
                                                        data<state_t>(y),
                                                        stored_rows<history_t>(u),
                                                        stored_rows<history_t>(v),
                                                        data<int64_t>(rank),
                                                        shape.capacity,
                                                        shape.columns,
                                                        shape.dim,
                                                        scale};
    launch(product, place, demand, scratch);
  });
  return y;
}

Tensor low_rank_append(const Tensor& u, const Tensor& v, const Tensor& rank, const Tensor& s,
                       const Tensor& y, double scale) {
  check_same_device("s", s, {{"u", &u}, {"v", &v}, {"rank", &rank}, {"y", &y}});
  const AppendShape shape = check_low_rank_append(u, v, rank, s, y, scale);
  const Place place(s);
  Tensor appended = torch::stable::new_empty(rank, {shape.batch}, ScalarType::Bool);
  Scratch scratch(s, shape.batch);
  with_state_and_history_type(s.scalar_type(), u.scalar_type(), [&](auto state, auto history) {
    using state_t = decltype(state);
    using history_t = decltype(history);
    using Append = LowRankAppend<state_t, history_t>;
    const Append append = {stored_rows<history_t>(u),
                           stored_rows<history_t>(v),
                           data<int64_t>(rank),
                           data<state_t>(s),
                           data<state_t>(y),
                           data<bool>(appended),
                           shape.capacity,
                           shape.dim,
                           scale};
    const GpuDemand demand = {
        shape.batch,        shape.dim,
        /*rows=*/0,         sizeof(history_t), Append::kOwnDots + 2 * shape.capacity,
        /*table_doubles=*/0};
    launch(append, place, demand, scratch);
  });
  return appended;
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CUDA, m) {
  m.impl("low_rank_matvec", TORCH_BOX(&deq::low_rank_matvec));
  m.impl("low_rank_append_", TORCH_BOX(&deq::low_rank_append));
}
