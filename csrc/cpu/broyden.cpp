// The Broyden step and the products with its inverse, from one stored vector per step.
// Formulas: docs/algebra.md, section 1. Reference: deq_kernels/ops/broyden/reference.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "algebra/broyden_step.h"
#include "algebra/lanes.h"
#include "algebra/product_form.h"
#include "cpu/norms.h"
#include "cpu/product.h"
#include "cpu/samples.h"
#include "cpu/step.h"
#include "cpu/streaming.h"
#include "torch/arguments.h"

namespace deq {
namespace {

template <typename state_t, typename history_t>
struct Step {
  using accum_t = accumulate_t<state_t>;

  const state_t* f_z;  // [batch, dim], rows f_stride apart
  int64_t f_stride;
  state_t* z;             // [batch, dim]
  state_t* best_z;        // [batch, dim]
  history_t* directions;  // [batch, capacity, dim], rows row_stride apart
  int64_t sample_stride;
  int64_t row_stride;
  double* algebra;    // [batch, capacity, capacity + 2]
  double* record;     // [batch, kNormColumns + max_steps]
  int64_t* counters;  // [batch, kCounterColumns]
  double* scratch;    // [batch, tiles + 1, width]
  int64_t dim;
  int64_t capacity;
  int64_t tiles;
  StepOptions options;

  const StateTiles<state_t>& state = state_tiles<state_t>();
  const HistoryTiles<history_t, accum_t>& history = history_tiles<history_t, accum_t>();

  // A row of partial sums: ||r||^2, ||f||^2, <p_j, r> for all j, <p_j, p_newest> for all j.
  static constexpr int64_t kDots = 2;
  int64_t width() const { return kDots + 2 * capacity; }
  double* partials(int64_t sample) const { return scratch + sample * (tiles + 1) * width(); }
  double* totals(int64_t sample) const { return partials(sample) + tiles * width(); }
  int64_t count(int64_t sample) const { return counters[sample * kCounterColumns + kCount]; }
  double* norms(int64_t sample) const {
    return sample_record(record, sample, options.limits.max_steps);
  }
  history_t* row(int64_t sample, int64_t j) const {
    return directions + sample * sample_stride + j * row_stride;
  }

  ProductForm form(int64_t sample) const {
    return {algebra + sample * ProductForm::table_size(capacity), capacity};
  }

  void measure(int64_t sample, int64_t tile) const {
    const auto [begin, size] = tile_range(tile, dim);
    TileBuffer<accum_t> r;
    TileBuffer<accum_t> other;
    double* out = partials(sample) + tile * width();
    state.residual_norms(f_z + sample * f_stride + begin, z + sample * dim + begin, size, r.values,
                         other.values, out, out + 1);
    const int64_t k = count(sample);
    if (k > 0 && !only_judges(options, counters + sample * kCounterColumns)) {
      // What the history is stored with; nothing happens where that is 1.
      history.combine(nullptr, 0, 0, nullptr, norms(sample)[kDirectionScale], size, r.values);
      history.load(row(sample, k - 1) + begin, size, other.values);
      history.dots_pair(row(sample, 0) + begin, row_stride, k, r.values, other.values, size,
                        out + kDots, out + kDots + capacity);
    }
  }

  StepDecision conclude(int64_t sample) const {
    double* sums = totals(sample);
    add_tiles(partials(sample), tiles, width(), sums);
    double* const q = sums + kDots;
    const StepNorms measured = step_norms(sums, f_z + sample * f_stride, z + sample * dim, dim);
    StepDecision decision;
    conclude_step(OneLane(), options, form(sample), dim, measured, q, q + capacity, norms(sample),
                  counters + sample * kCounterColumns, &decision);
    return decision;
  }

  void apply(int64_t sample, int64_t tile, const StepDecision& decision) const {
    const auto [begin, size] = tile_range(tile, dim);
    state_t* z_tile = z + sample * dim + begin;
    state_t* best_tile = best_z + sample * dim + begin;
    if (decision.restore) {
      std::copy_n(best_tile, size, z_tile);
      return;
    }
    TileBuffer<accum_t> p;
    if (decision.extend) {
      state.residual(f_z + sample * f_stride + begin, z_tile, size, p.values);
      history.combine(row(sample, 0) + begin, row_stride, decision.count, totals(sample) + kDots,
                      decision.scale, size, p.values);
      for (int64_t j = 1; decision.drop && j < decision.count; ++j) {
        std::copy_n(row(sample, j) + begin, size, row(sample, j - 1) + begin);
      }
      // The step is taken along the direction as stored, so that the inverse matches the step.
      history.store_rounded(p.values, size, row(sample, decision.slot()) + begin);
    }
    if (decision.keep) {
      std::copy_n(z_tile, size, best_tile);
    }
    if (decision.advance) {
      state.advance(p.values, static_cast<accum_t>(decision.step(options.damping)), size, z_tile);
    } else if (decision.backtrack) {
      history.load(row(sample, decision.count - 1) + begin, size, p.values);
      state.advance(p.values, static_cast<accum_t>(decision.scale), size, z_tile);
    }
  }
};

void broyden_step(const Tensor& f_z, const Tensor& z, const Tensor& best_z,
                  const Tensor& directions, const Tensor& algebra, const Tensor& record,
                  const Tensor& counters, const Tensor& active, const Tensor& scratch, double rtol,
                  double atol, double damping, double gamma, int64_t stall_steps,
                  double divergence_factor, bool finish_inverse, bool drop_oldest,
                  bool estimate_gamma, int64_t max_backtracks) {
  const StepShape shape = check_broyden_step(f_z, z, best_z, directions, algebra, record, counters,
                                             active, scratch, kTile);
  check_stopping(rtol, atol, damping, stall_steps, divergence_factor);
  check_finite(gamma, "gamma");
  check_count(max_backtracks, "max_backtracks");
  const int64_t batch = shape.batch;
  const int64_t dim = shape.dim;
  const int64_t capacity = shape.capacity;
  const int64_t max_steps = shape.max_steps;
  const int64_t tiles = tile_count(dim);

  int64_t* counter = data<int64_t>(counters);
  const std::vector<int64_t>& running = running_samples(counter, batch);
  const int64_t most = check_counters(running, counter, max_steps);
  STD_TORCH_CHECK(most <= capacity, "a sample has ", most, " directions, but there is room for ",
                  capacity);
  with_state_and_history_type(z.scalar_type(), directions.scalar_type(), [&](auto s, auto h) {
    using state_t = decltype(s);
    using history_t = decltype(h);
    const Step<state_t, history_t> step = {
        data<state_t>(f_z),
        f_z.stride(0),
        data<state_t>(z),
        data<state_t>(best_z),
        data<history_t>(directions),
        directions.stride(0),
        directions.stride(1),
        data<double>(algebra),
        data<double>(record),
        counter,
        data<double>(scratch),
        dim,
        capacity,
        tiles,
        {damping,
         gamma,
         finish_inverse,
         drop_oldest,
         estimate_gamma,
         max_backtracks,
         ScaleRangeOf<history_t, accumulate_t<state_t>>::value,
         {rtol, atol, max_steps, stall_steps, divergence_factor, /*max_rejections=*/1}}};
    run_step<state_t, history_t>(step, running, dim, most, counter);
  });
  *data<int64_t>(active) = count_running(counter, batch);
}

Tensor broyden_matvec(const Tensor& directions, const Tensor& algebra, const Tensor& rank,
                      const Tensor& x, double scale, bool transpose) {
  const ProductShape shape = check_broyden_matvec(directions, algebra, rank, x, scale);
  const int64_t capacity = shape.capacity;
  double* tables = data<double>(algebra);

  auto coefficients = [&](int64_t sample, int64_t r, double* q) {
    const ProductForm form = {tables + sample * ProductForm::table_size(capacity), capacity};
    product_coefficients(OneLane(), form, r, scale, transpose, q);
  };
  return two_pass_product(shape, directions, directions, rank, x, scale, directions_of_rank,
                          coefficients);
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CPU, m) {
  m.impl("broyden_step_", TORCH_BOX(&deq::broyden_step));
  m.impl("broyden_matvec", TORCH_BOX(&deq::broyden_matvec));
}
