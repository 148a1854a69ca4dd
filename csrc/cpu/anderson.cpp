// The Anderson step.
// Formulas: docs/algebra.md, section 4. Reference: deq_kernels/ops/anderson/reference.py.
#include "algebra/anderson.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "algebra/lanes.h"
#include "cpu/norms.h"
#include "cpu/samples.h"
#include "cpu/step.h"
#include "cpu/streaming.h"
#include "torch/arguments.h"

namespace deq {
namespace {

// Stored changes [batch, capacity, dim] with dense rows.
template <typename history_t>
struct Changes {
  history_t* data;
  int64_t sample_stride;
  int64_t row_stride;

  explicit Changes(const Tensor& t)
      : data(deq::data<history_t>(t)), sample_stride(t.stride(0)), row_stride(t.stride(1)) {}

  history_t* row(int64_t sample, int64_t slot) const {
    return data + sample * sample_stride + slot * row_stride;
  }
};

template <typename state_t, typename history_t>
struct AndersonStep {
  using accum_t = accumulate_t<state_t>;

  const state_t* f_z;  // [batch, dim], rows f_stride apart
  int64_t f_stride;
  state_t* z;       // [batch, dim]
  state_t* best_z;  // [batch, dim]
  Changes<history_t> residual_changes;
  Changes<history_t> image_changes;
  state_t* last_residual;  // [batch, dim]
  double* algebra;         // [batch, capacity, 2 capacity]
  double* record;          // [batch, kNormColumns + max_steps]
  int64_t* counters;       // [batch, kCounterColumns]
  double* scratch;         // [batch, tiles + 1, width]
  int64_t dim;
  int64_t capacity;
  int64_t tiles;
  AndersonOptions options;

  const StateTiles<state_t>& state = state_tiles<state_t>();
  const HistoryTiles<history_t, accum_t>& history = history_tiles<history_t, accum_t>();
  const HistoryTiles<accum_t, accum_t>& buffers = history_tiles<accum_t, accum_t>();

  // A row of partial sums: ||r||^2, ||f||^2, <t_j, r> for all j, <t_j, t_newest> for all j.
  static constexpr int64_t kDots = 2;
  int64_t width() const { return kDots + 2 * capacity; }
  double* partials(int64_t sample) const { return scratch + sample * (tiles + 1) * width(); }
  double* totals(int64_t sample) const { return partials(sample) + tiles * width(); }
  double* norms(int64_t sample) const {
    return sample_record(record, sample, options.limits.max_steps);
  }
  int64_t* counter(int64_t sample) const { return counters + sample * kCounterColumns; }

  // accum += scale x, for tile buffers.
  void add(const accum_t* x, double scale, int64_t size, accum_t* accum) const {
    buffers.combine(x, 0, 1, &scale, 1.0, size, accum);
  }

  void measure(int64_t sample, int64_t tile) const {
    const auto [begin, size] = tile_range(tile, dim);
    TileBuffer<accum_t> r;
    TileBuffer<accum_t> change;
    double* out = partials(sample) + tile * width();
    state.residual_norms(f_z + sample * f_stride + begin, z + sample * dim + begin, size, r.values,
                         change.values, out, out + 1);
    const ChangeRing ring(capacity, counter(sample)[kCount]);
    // After the last evaluation, whatever it shows, nothing follows that needs the dots.
    const bool is_last = counter(sample)[kSteps] + 1 == options.limits.max_steps;
    if (ring.count == 0 || is_last) {
      return;
    }
    // What the changes are stored with; nothing happens where that is 1.
    const double scale = norms(sample)[kDirectionScale];
    buffers.combine(nullptr, 0, 0, nullptr, scale, size, r.values);
    state.load(last_residual + sample * dim + begin, static_cast<accum_t>(-scale), size,
               change.values);
    add(r.values, 1.0, size, change.values);
    history.store_rounded(change.values, size, residual_changes.row(sample, ring.newest) + begin);
    history.dots_pair(residual_changes.row(sample, 0) + begin, residual_changes.row_stride,
                      ring.count, r.values, change.values, size, out + kDots,
                      out + kDots + capacity);
  }

  AndersonDecision conclude(int64_t sample) const {
    double* sums = totals(sample);
    add_tiles(partials(sample), tiles, width(), sums);
    const AndersonTable table = {algebra + sample * AndersonTable::table_size(capacity), capacity};
    const StepNorms measured = step_norms(sums, f_z + sample * f_stride, z + sample * dim, dim);
    AndersonDecision decision;
    conclude_anderson(OneLane(), options, table, dim, measured, sums + kDots,
                      sums + kDots + capacity, norms(sample), counter(sample), &decision);
    return decision;
  }

  void apply(int64_t sample, int64_t tile, const AndersonDecision& decision) const {
    const auto [begin, size] = tile_range(tile, dim);
    state_t* z_tile = z + sample * dim + begin;
    state_t* best_tile = best_z + sample * dim + begin;
    if (decision.restore) {
      std::copy_n(best_tile, size, z_tile);
      return;
    }
    if (decision.keep) {
      std::copy_n(z_tile, size, best_tile);
    }
    if (!decision.advance) {
      return;
    }
    const state_t* f_tile = f_z + sample * f_stride + begin;
    TileBuffer<accum_t> r;
    TileBuffer<accum_t> correction;
    if (capacity > 0) {
      std::fill_n(correction.values, kTile, accum_t(0));
      state.residual(f_tile, z_tile, size, r.values);
      state.store(r.values, size, last_residual + sample * dim + begin);
      if (decision.newest >= 0) {
        finish_image_change(r.values, size, image_changes.row(sample, decision.newest) + begin);
      }
      history.combine(image_changes.row(sample, 0) + begin, image_changes.row_stride,
                      decision.count, totals(sample) + kDots, 1.0, size, correction.values);
      // The step is taken along the correction as stored, so that its change matches the step.
      history.store_rounded(correction.values, size,
                            image_changes.row(sample, decision.next) + begin);
    }
    if (decision.count == 0) {
      state.relax(f_tile, static_cast<accum_t>(options.damping), size, z_tile);
    } else {
      add(r.values, options.damping, size, correction.values);
      state.advance(correction.values, accum_t(1), size, z_tile);
    }
  }

  // The newest row holds the correction that was added to the last damped image; now that the new
  // one is known, z + beta r, their difference is the correction plus beta r.
  void finish_image_change(const accum_t* r, int64_t size, history_t* newest) const {
    TileBuffer<accum_t> change;
    history.load(newest, size, change.values);
    add(r, options.damping, size, change.values);
    history.store_rounded(change.values, size, newest);
  }
};

void anderson_step(const Tensor& f_z, const Tensor& z, const Tensor& best_z,
                   const Tensor& residual_changes, const Tensor& image_changes,
                   const Tensor& last_residual, const Tensor& algebra, const Tensor& record,
                   const Tensor& counters, const Tensor& active, const Tensor& scratch, double rtol,
                   double atol, double damping, double regularization, int64_t stall_steps,
                   double divergence_factor) {
  const StepShape shape =
      check_anderson_step(f_z, z, best_z, residual_changes, image_changes, last_residual, algebra,
                          record, counters, active, scratch, kTile);
  check_stopping(rtol, atol, damping, stall_steps, divergence_factor);
  check_not_negative(regularization, "regularization");
  const int64_t batch = shape.batch;
  const int64_t dim = shape.dim;
  const int64_t capacity = shape.capacity;
  const int64_t max_steps = shape.max_steps;

  int64_t* counter = data<int64_t>(counters);
  const std::vector<int64_t>& running = running_samples(counter, batch);
  const int64_t seen = check_counters(running, counter, max_steps);
  const int64_t most = ChangeRing(capacity, seen).count;
  with_state_and_history_type(z.scalar_type(), residual_changes.scalar_type(), [&](auto s, auto h) {
    using state_t = decltype(s);
    using history_t = decltype(h);
    const AndersonStep<state_t, history_t> step = {
        data<state_t>(f_z),
        f_z.stride(0),
        data<state_t>(z),
        data<state_t>(best_z),
        Changes<history_t>(residual_changes),
        Changes<history_t>(image_changes),
        data<state_t>(last_residual),
        data<double>(algebra),
        data<double>(record),
        counter,
        data<double>(scratch),
        dim,
        capacity,
        tile_count(dim),
        {damping,
         regularization,
         dependent_share<history_t, accumulate_t<state_t>>(),
         ScaleRangeOf<history_t, accumulate_t<state_t>>::value,
         {rtol, atol, max_steps, stall_steps, divergence_factor, /*max_rejections=*/1}}};
    run_step<state_t, history_t>(step, running, dim, most, counter);
  });
  *data<int64_t>(active) = count_running(counter, batch);
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CPU, m) {
  m.impl("anderson_step_", TORCH_BOX(&deq::anderson_step));
}
