// The sum-form inverse H = scale I + sum_i u_i v_i^T: product and Sherman-Morrison append.
// Formulas: docs/algebra.md, section 2. Reference: deq_kernels/ops/low_rank/reference.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "algebra/sherman_morrison.h"
#include "cpu/product.h"
#include "cpu/scratch.h"
#include "cpu/streaming.h"
#include "torch/arguments.h"

namespace deq {
namespace {

Tensor low_rank_matvec(const Tensor& u, const Tensor& v, const Tensor& rank, const Tensor& x,
                       double scale) {
  const ProductShape shape = check_low_rank_matvec(u, v, rank, x, scale);
  return two_pass_product(
      shape, v, u, rank, x, scale, [](int64_t r) { return r; }, [](int64_t, int64_t, double*) {});
}

template <typename state_t, typename history_t>
struct Append {
  using accum_t = accumulate_t<state_t>;

  history_t* u;  // [batch, capacity, dim]
  history_t* v;
  int64_t u_strides[2];
  int64_t v_strides[2];
  int64_t* rank;     // [batch]
  const state_t* s;  // [batch, dim]
  const state_t* y;  // [batch, dim]
  bool* appended;    // [batch]
  double* scratch;   // [batch, tiles + 1, width]
  int64_t dim;
  int64_t capacity;
  int64_t tiles;
  double scale;

  const StateTiles<state_t>& state = state_tiles<state_t>();
  const HistoryTiles<history_t, accum_t>& history = history_tiles<history_t, accum_t>();

  // A row of partial sums: <s, y>, ||s||^2, ||y||^2, <u_i, s> for all i, <v_i, y> for all i.
  static constexpr int64_t kDots = 3;
  int64_t width() const { return kDots + 2 * capacity; }
  double* partials(int64_t sample) const { return scratch + sample * (tiles + 1) * width(); }
  double* totals(int64_t sample) const { return partials(sample) + tiles * width(); }
  history_t* u_row(int64_t sample, int64_t i) const {
    return u + sample * u_strides[0] + i * u_strides[1];
  }
  history_t* v_row(int64_t sample, int64_t i) const {
    return v + sample * v_strides[0] + i * v_strides[1];
  }

  void measure(int64_t sample, int64_t tile) const {
    const auto [begin, size] = tile_range(tile, dim);
    TileBuffer<accum_t> s_tile;
    TileBuffer<accum_t> y_tile;
    state.load(s + sample * dim + begin, accum_t(1), size, s_tile.values);
    state.load(y + sample * dim + begin, accum_t(1), size, y_tile.values);
    double* out = partials(sample) + tile * width();
    const auto& own = history_tiles<accum_t, accum_t>();
    own.dots_pair(s_tile.values, 0, 1, y_tile.values, s_tile.values, size, out, out + 1);
    own.dots(y_tile.values, 0, 1, y_tile.values, size, out + 2);
    history.dots(u_row(sample, 0) + begin, u_strides[1], rank[sample], s_tile.values, size,
                 out + kDots);
    history.dots(v_row(sample, 0) + begin, v_strides[1], rank[sample], y_tile.values, size,
                 out + kDots + capacity);
  }

  // 1 / <v, y>, or 0 where the pair is refused.
  double conclude(int64_t sample) const {
    double* sums = totals(sample);
    appended[sample] = false;
    if (tiles == 0 || rank[sample] == capacity) {
      return 0.0;
    }
    add_tiles(partials(sample), tiles, width(), sums);
    const double inverse = sherman_morrison_scale(sums[0], sums[1], sums[2], scale, rank[sample],
                                                  sums + kDots, sums + kDots + capacity);
    appended[sample] = inverse != 0.0;
    return inverse;
  }

  // v = scale s + sum_i <u_i, s> v_i and u = (s - scale y - sum_i <v_i, y> u_i) / <v, y>.
  void apply(int64_t sample, int64_t tile, double inverse) const {
    const auto [begin, size] = tile_range(tile, dim);
    const int64_t r = rank[sample];
    double* u_dots = totals(sample) + kDots;
    double* v_dots = u_dots + capacity;
    TileBuffer<accum_t> s_tile;
    TileBuffer<accum_t> out;
    state.load(s + sample * dim + begin, accum_t(1), size, s_tile.values);
    state.load(s + sample * dim + begin, static_cast<accum_t>(scale), size, out.values);
    history.combine(v_row(sample, 0) + begin, v_strides[1], r, u_dots, 1.0, size, out.values);
    history.store_rounded(out.values, size, v_row(sample, r) + begin);

    state.load(y + sample * dim + begin, static_cast<accum_t>(scale), size, out.values);
    history.combine(u_row(sample, 0) + begin, u_strides[1], r, v_dots, 1.0, size, out.values);
    history_tiles<accum_t, accum_t>().combine(s_tile.values, 0, 1, &inverse, -inverse, size,
                                              out.values);
    history.store_rounded(out.values, size, u_row(sample, r) + begin);
  }
};

Tensor low_rank_append(const Tensor& u, const Tensor& v, const Tensor& rank, const Tensor& s,
                       const Tensor& y, double scale) {
  const AppendShape shape = check_low_rank_append(u, v, rank, s, y, scale);
  const int64_t batch = shape.batch;
  const int64_t capacity = shape.capacity;
  const int64_t dim = shape.dim;
  const int64_t tiles = tile_count(dim);
  int64_t* ranks = data<int64_t>(rank);
  std::vector<int64_t> samples(static_cast<size_t>(batch));
  int64_t most = 0;
  for (int64_t sample = 0; sample < batch; ++sample) {
    samples[static_cast<size_t>(sample)] = sample;
    STD_TORCH_CHECK(ranks[sample] >= 0 && ranks[sample] <= capacity, "rank of sample ", sample,
                    " is ", ranks[sample], ", but history_length is ", capacity);
    most = std::max(most, ranks[sample]);
  }
  Tensor appended = torch::stable::new_empty(rank, {batch}, ScalarType::Bool);
  std::vector<double> scratch = new_scratch({batch, tiles + 1, 3 + 2 * capacity});
  with_state_and_history_type(s.scalar_type(), u.scalar_type(), [&](auto state, auto history) {
    using state_t = decltype(state);
    using history_t = decltype(history);
    const Append<state_t, history_t> append = {data<history_t>(u),
                                               data<history_t>(v),
                                               {u.stride(0), u.stride(1)},
                                               {v.stride(0), v.stride(1)},
                                               ranks,
                                               data<state_t>(s),
                                               data<state_t>(y),
                                               data<bool>(appended),
                                               scratch.data(),
                                               dim,
                                               capacity,
                                               tiles,
                                               scale};
    const StreamPlan plan = plan_stream(batch, dim, 2 * most, sizeof(state_t), sizeof(history_t),
                                        torch::stable::get_num_threads());
    two_passes(
        plan, samples, /*backwards=*/false,
        [&](int64_t sample, int64_t tile) { append.measure(sample, tile); },
        [&](int64_t sample) { return append.conclude(sample); },
        [&](int64_t sample, int64_t tile, double inverse) { append.apply(sample, tile, inverse); });
  });
  const bool* accepted = data<bool>(appended);
  for (int64_t sample = 0; sample < batch; ++sample) {
    ranks[sample] += accepted[sample] ? 1 : 0;
  }
  return appended;
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CPU, m) {
  m.impl("low_rank_matvec", TORCH_BOX(&deq::low_rank_matvec));
  m.impl("low_rank_append_", TORCH_BOX(&deq::low_rank_append));
}
