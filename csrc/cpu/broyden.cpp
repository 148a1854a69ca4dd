// The Broyden step and the products with its inverse, from one stored vector per step.
// Formulas: docs/algebra.md, section 1. Reference: deq_kernels/ops/broyden/reference.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "algebra/product_form.h"
#include "algebra/termination.h"
#include "cpu/checks.h"
#include "cpu/product.h"
#include "cpu/samples.h"
#include "cpu/streaming.h"

namespace deq {
namespace {

// What the second pass over a sample has to do.
struct Decision {
  bool keep;      // best_z <- z
  bool restore;   // z <- best_z
  bool extend;    // write the next direction to row `count`
  bool advance;   // z <- z + alpha p
  int64_t count;  // directions that enter the combination
  double scale;   // of H_0 r in it

  explicit operator bool() const { return keep || restore || extend; }
};

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
  double damping;
  double gamma;
  bool finish_inverse;
  Limits limits;

  const StateTiles<state_t>& state = state_tiles<state_t>();
  const HistoryTiles<history_t, accum_t>& history = history_tiles<history_t, accum_t>();

  // A row of partial sums: ||r||^2, ||f||^2, <p_j, r> for all j, <p_j, p_newest> for all j.
  static constexpr int64_t kDots = 2;
  int64_t width() const { return kDots + 2 * capacity; }
  double* partials(int64_t sample) const { return scratch + sample * (tiles + 1) * width(); }
  double* totals(int64_t sample) const { return partials(sample) + tiles * width(); }
  int64_t count(int64_t sample) const { return counters[sample * kCounterColumns + kCount]; }
  history_t* row(int64_t sample, int64_t j) const {
    return directions + sample * sample_stride + j * row_stride;
  }

  ProductForm form(int64_t sample) const {
    return {algebra + sample * ProductForm::table_size(capacity), capacity};
  }

  // Whether this evaluation is the sample's last, whatever it shows, and nothing follows it.
  bool only_judges(int64_t sample) const {
    return !finish_inverse && counters[sample * kCounterColumns + kSteps] + 1 == limits.max_steps;
  }

  void measure(int64_t sample, int64_t tile) const {
    const auto [begin, size] = tile_range(tile, dim);
    TileBuffer<accum_t> r;
    TileBuffer<accum_t> other;
    double* out = partials(sample) + tile * width();
    state.residual_norms(f_z + sample * f_stride + begin, z + sample * dim + begin, size, r.values,
                         other.values, out, out + 1);
    const int64_t k = count(sample);
    if (k > 0 && !only_judges(sample)) {
      history.load(row(sample, k - 1) + begin, size, other.values);
      history.dots_pair(row(sample, 0) + begin, row_stride, k, r.values, other.values, size,
                        out + kDots, out + kDots + capacity);
    }
  }

  Decision conclude(int64_t sample) const {
    double* sums = totals(sample);
    add_tiles(partials(sample), tiles, width(), sums);
    int64_t* counter = counters + sample * kCounterColumns;
    const Verdict verdict =
        judge(sums[0], sums[1], limits, sample_record(record, sample, limits.max_steps), counter);

    Decision decision = {verdict.improved, false, false, false, counter[kCount], -1.0};
    if (verdict.action == Action::kReject) {
      counter[kCount] = 0;
      decision.restore = true;
      return decision;
    }
    const bool full = decision.count == capacity;
    if (verdict.action == Action::kStop) {
      // Where the inverse is wanted, SHINE reads it at the solution: the last secant pair enters.
      decision.extend = finish_inverse && !verdict.rejected && decision.count > 0 && !full;
    } else {
      decision.extend = true;
      decision.advance = true;
      decision.count = full ? 0 : decision.count;
    }
    if (decision.extend) {
      decision.scale = finish_factor(sample, decision.count, sums);
      form(sample).step(decision.count) = damping;
      counter[kCount] = decision.count + 1;
    }
    return decision;
  }

  // Takes the newest Gram column in, and leaves the coefficients of the next direction in `sums`.
  double finish_factor(int64_t sample, int64_t k, double* sums) const {
    double* q = sums + kDots;
    const double* column = q + capacity;
    std::for_each_n(q, k, [&](double& dot) { dot *= -gamma; });
    if (k > 0) {
      form(sample).set_newest(k - 1, column);
    }
    return direction_coefficients(form(sample), k, q);
  }

  void apply(int64_t sample, int64_t tile, const Decision& decision) const {
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
                      -gamma * decision.scale, size, p.values);
      // The step is taken along the direction as stored, so that the inverse matches the step.
      history.store_rounded(p.values, size, row(sample, decision.count) + begin);
    }
    if (decision.keep) {
      std::copy_n(z_tile, size, best_tile);
    }
    if (decision.advance) {
      state.advance(p.values, static_cast<accum_t>(damping), size, z_tile);
    }
  }
};

void broyden_step(const Tensor& f_z, const Tensor& z, const Tensor& best_z,
                  const Tensor& directions, const Tensor& algebra, const Tensor& record,
                  const Tensor& counters, const Tensor& active, const Tensor& scratch, double rtol,
                  double atol, double damping, double gamma, int64_t stall_steps,
                  double divergence_factor, bool finish_inverse) {
  STD_TORCH_CHECK(z.dim() == 2, "z must be [batch, dim], got ", z.dim(), " dimensions");
  STD_TORCH_CHECK(directions.dim() == 3, "directions must be [batch, history_length + 1, dim]");
  const int64_t batch = z.size(0);
  const int64_t dim = z.size(1);
  const int64_t capacity = directions.size(1);
  const int64_t max_steps = record_steps(record);
  const int64_t tiles = tile_count(dim);
  STD_TORCH_CHECK(capacity >= 1, "directions must have room for at least one direction");
  const ScalarType dtype = z.scalar_type();
  check_shape(f_z, "f_z", {batch, dim});
  check_dtype(f_z, "f_z", dtype);
  check_dense_rows(f_z, "f_z");
  check_contiguous(z, "z");
  check_table(best_z, "best_z", dtype, {batch, dim});
  check_shape(directions, "directions", {batch, capacity, dim});
  check_dense_rows(directions, "directions");
  check_table(algebra, "algebra", ScalarType::Double, {batch, capacity, capacity + 2});
  check_table(record, "record", ScalarType::Double, {batch, kNormColumns + max_steps});
  check_table(counters, "counters", ScalarType::Long, {batch, kCounterColumns});
  check_table(active, "active", ScalarType::Long, {1});
  check_table(scratch, "scratch", ScalarType::Double, {batch, tiles + 1, 2 + 2 * capacity});

  int64_t* counter = data<int64_t>(counters);
  const std::vector<int64_t>& running = running_samples(counter, batch);
  check_steps_left(running, counter, max_steps);
  int64_t most = 0;
  for (int64_t sample : running) {
    const int64_t count = counter[sample * kCounterColumns + kCount];
    STD_TORCH_CHECK(count >= 0 && count <= capacity, "sample ", sample, " has ", count,
                    " directions, but there is room for ", capacity);
    most = std::max(most, count);
  }
  with_state_and_history_type(dtype, directions.scalar_type(), [&](auto s, auto h) {
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
        damping,
        gamma,
        finish_inverse,
        {rtol, atol, max_steps, stall_steps, divergence_factor, /*max_rejections=*/1}};
    const StreamPlan plan =
        plan_stream(static_cast<int64_t>(running.size()), dim, most, sizeof(state_t),
                    sizeof(history_t), torch::stable::get_num_threads());
    const bool backwards =
        !running.empty() && counter[running[0] * kCounterColumns + kSteps] % 2 == 1;
    two_passes(
        plan, running, backwards, [&](int64_t sample, int64_t tile) { step.measure(sample, tile); },
        [&](int64_t sample) { return step.conclude(sample); },
        [&](int64_t sample, int64_t tile, const Decision& decision) {
          step.apply(sample, tile, decision);
        });
  });
  *data<int64_t>(active) = count_running(counter, batch);
}

Tensor broyden_matvec(const Tensor& directions, const Tensor& algebra, const Tensor& rank,
                      const Tensor& x, double scale, bool transpose) {
  const ProductShape shape = check_product(directions, "directions", rank, x);
  const int64_t capacity = shape.capacity;
  check_table(algebra, "algebra", ScalarType::Double, {shape.batch, capacity, capacity + 2});
  double* tables = data<double>(algebra);

  auto coefficients = [&](int64_t sample, int64_t r, double* q) {
    const ProductForm form = {tables + sample * ProductForm::table_size(capacity), capacity};
    if (transpose) {
      rmatvec_coefficients(form, r, q);
      std::for_each_n(q, r, [&](double& d) { d *= scale; });
      q[r] = 0.0;
    } else {
      std::for_each_n(q, r, [&](double& dot) { dot *= scale; });
      matvec_coefficients(form, r, q);
    }
  };
  // `rank` factors are made of rank + 1 directions, and the empty product of none.
  auto rows_of_rank = [](int64_t r) { return r == 0 ? 0 : r + 1; };
  return two_pass_product(shape, directions, directions, rank, x, scale, rows_of_rank,
                          coefficients);
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CPU, m) {
  m.impl("broyden_step_", TORCH_BOX(&deq::broyden_step));
  m.impl("broyden_matvec", TORCH_BOX(&deq::broyden_matvec));
}
