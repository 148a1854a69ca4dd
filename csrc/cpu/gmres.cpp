// The step of GMRES: four readings of a sample's basis, two of them tile by tile.
// Formulas: docs/algebra.md, section 5. Reference: deq_kernels/ops/gmres/reference.py.
#include "algebra/gmres.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <type_traits>

#include "algebra/lanes.h"
#include "cpu/norms.h"
#include "cpu/samples.h"
#include "cpu/streaming.h"
#include "torch/arguments.h"

namespace deq {
namespace {

template <typename state_t>
struct GmresStep {
  using accum_t = accumulate_t<state_t>;

  const state_t* f_z;  // [batch, dim], rows f_stride apart
  int64_t f_stride;
  state_t* z;                // [batch, dim]
  state_t* best_z;           // [batch, dim]
  accum_t* basis;            // [batch, columns + 1, dim], with strides
  int64_t basis_strides[2];  // from sample to sample, from row to row
  accum_t* start;            // w_0, [batch, dim]
  accum_t* start_residual;   // r(w_0), [batch, dim]
  double* algebra;           // [batch, GmresTable::table_size(columns)]
  double* record;            // [batch, kNormColumns + max_steps]
  int64_t* counters;         // [batch, kCounterColumns]
  double* scratch;           // [batch, tiles + 1, width]
  int64_t dim;
  int64_t columns;
  int64_t tiles;
  GmresOptions options;

  const StateTiles<state_t>& state = state_tiles<state_t>();
  // Sums over the state are taken in float64, and so are combinations of the basis.
  const HistoryTiles<accum_t, double>& vectors = history_tiles<accum_t, double>();
  const HistoryTiles<accum_t, accum_t>& buffers = history_tiles<accum_t, accum_t>();

  int64_t width() const { return GmresSums::kDots + columns; }
  double* partials(int64_t sample) const { return scratch + sample * (tiles + 1) * width(); }
  double* totals(int64_t sample) const { return partials(sample) + tiles * width(); }
  int64_t* counter(int64_t sample) const { return counters + sample * kCounterColumns; }
  double* own_record(int64_t sample) const {
    return sample_record(record, sample, options.limits.max_steps);
  }
  GmresTable table(int64_t sample) const {
    return {algebra + sample * GmresTable::table_size(columns), columns};
  }
  accum_t* row(int64_t sample, int64_t j) const {
    return basis + sample * basis_strides[0] + j * basis_strides[1];
  }

  // What f(z) shows of a sample whose basis holds `count` vectors: GmresSums.
  void measure(int64_t sample, int64_t tile, int64_t count) const {
    const auto [begin, size] = tile_range(tile, dim);
    const state_t* f_tile = f_z + sample * f_stride + begin;
    const state_t* z_tile = z + sample * dim + begin;
    double* out = partials(sample) + tile * width();
    TileBuffer<accum_t> r;
    TileBuffer<double> wide;
    if (count > 0) {
      state.residual(f_tile, z_tile, size, r.values);
      // M v, which waits where the next vector of the basis will be. t is a power of two.
      const double share = 1.0 / table(sample).scale();
      buffers.combine(start_residual + sample * dim + begin, 0, 1, &share, -share, size, r.values);
      buffers.store_rounded(r.values, size, row(sample, count) + begin);
      vectors.load(r.values, size, wide.values);
      vectors.dots(row(sample, 0) + begin, basis_strides[1], count, wide.values, size,
                   out + GmresSums::kDots);
      return;
    }
    TileBuffer<accum_t> point;
    TileBuffer<double> wide_point;
    state.residual_norms(f_tile, z_tile, size, r.values, point.values, out + GmresSums::kResidual,
                         out + GmresSums::kImage);
    state.load(z_tile, accum_t(1), size, point.values);
    vectors.load(point.values, size, wide_point.values);
    vectors.load(r.values, size, wide.values);
    vectors.dots_pair(point.values, 0, 1, wide_point.values, wide.values, size,
                      out + GmresSums::kPoint, out + GmresSums::kAlong);
  }

  GmresDecision conclude_evaluation(int64_t sample, int64_t count) const {
    double* sums = totals(sample);
    StepNorms measured = {};
    GmresStart start = {};
    if (count == 0) {
      const state_t* f = f_z + sample * f_stride;
      const state_t* point = z + sample * dim;
      measured = step_norms(sums + GmresSums::kResidual, f, point, dim);
      start = start_of(sums, measured.residual.root(), f, point);
    }
    GmresDecision decision;
    conclude_gmres_evaluation(OneLane(), options, table(sample), count, measured, start, sums,
                              own_record(sample), counter(sample), &decision);
    return decision;
  }

  GmresStart start_of(const double* sums, double residual, const state_t* f,
                      const state_t* point) const {
    GmresStart start;
    const bool told = read_start(sums, residual, &start);
    if constexpr (std::is_same_v<state_t, double>) {
      if (!told) {
        start.norm = measure_with_unit(dim, [&](int64_t i) { return point[i]; }).root();
        start.along = 0.0;
        for (int64_t i = 0; i < dim; ++i) {
          start.along += (f[i] - point[i]) / residual * point[i];
        }
      }
    }
    return start;
  }

  // What a decision about the end of a cycle asks for.
  void move(int64_t sample, int64_t tile, const GmresDecision& decision) const {
    const auto [begin, size] = tile_range(tile, dim);
    const state_t* f_tile = f_z + sample * f_stride + begin;
    state_t* z_tile = z + sample * dim + begin;
    state_t* best_tile = best_z + sample * dim + begin;
    if (decision.keep) {
      std::copy_n(z_tile, size, best_tile);
    }
    if (decision.move == GmresMove::kRestore) {
      std::copy_n(best_tile, size, z_tile);
    } else if (decision.move == GmresMove::kRelax) {
      std::copy_n(f_tile, size, z_tile);
    } else if (decision.move == GmresMove::kBegin) {
      TileBuffer<accum_t> buffer;
      TileBuffer<double> wide;
      state.residual(f_tile, z_tile, size, buffer.values);
      buffers.store_rounded(buffer.values, size, start_residual + sample * dim + begin);
      vectors.load(buffer.values, size, wide.values);
      state.load(z_tile, accum_t(1), size, buffer.values);
      buffers.store_rounded(buffer.values, size, start + sample * dim + begin);
      vectors.combine(nullptr, 0, 0, nullptr, decision.factor, size, wide.values);
      vectors.store_rounded(wide.values, size, row(sample, 0) + begin);
      probe(sample, tile, 0);
    }
  }

  // The image without its part in the basis, and what is left of that: GmresRest.
  void project(int64_t sample, int64_t tile, int64_t count, const double* coefficients) const {
    const auto [begin, size] = tile_range(tile, dim);
    const accum_t* first = row(sample, 0) + begin;
    accum_t* image = row(sample, count) + begin;
    double* out = partials(sample) + tile * width();
    TileBuffer<double> wide;
    vectors.load(image, size, wide.values);
    vectors.combine(first, basis_strides[1], count, coefficients, 1.0, size, wide.values);
    vectors.store_rounded(wide.values, size, image);
    vectors.dots(image, 0, 1, wide.values, size, out + GmresRest::kNorm);
    vectors.dots(start + sample * dim + begin, 0, 1, wide.values, size, out + GmresRest::kAlong);
    vectors.dots(first, basis_strides[1], count, wide.values, size, out + GmresRest::kDots);
  }

  // The next vector of the basis, or the minimiser.
  void finish(int64_t sample, int64_t tile, const GmresExtension& decision) const {
    const auto [begin, size] = tile_range(tile, dim);
    const double* coefficients = totals(sample) + GmresRest::kDots;
    const int64_t count = decision.count;
    accum_t* image = row(sample, count) + begin;
    TileBuffer<double> wide;
    vectors.load(decision.end ? start + sample * dim + begin : image, size, wide.values);
    vectors.combine(row(sample, 0) + begin, basis_strides[1], count, coefficients,
                    decision.end ? 1.0 : decision.factor, size, wide.values);
    if (decision.extend) {
      vectors.store_rounded(wide.values, size, image);
      probe(sample, tile, count);
      return;
    }
    TileBuffer<accum_t> minimiser;
    vectors.store_rounded(wide.values, size, minimiser.values);
    state.store(minimiser.values, size, z + sample * dim + begin);
  }

  // z <- w_0 + t v with the vector of that number.
  void probe(int64_t sample, int64_t tile, int64_t vector) const {
    const auto [begin, size] = tile_range(tile, dim);
    TileBuffer<accum_t> point;
    buffers.load(start + sample * dim + begin, size, point.values);
    buffers.combine(row(sample, vector) + begin, 0, 1, &table(sample).scale(), 1.0, size,
                    point.values);
    state.store(point.values, size, z + sample * dim + begin);
  }

  void run(int64_t sample, bool split_tiles) const {
    const int64_t count = counter(sample)[kCount];
    double* sums = totals(sample);
    const auto over_tiles = [&](bool backwards, const auto& body) {
      for_each(tiles, split_tiles, backwards, body);
    };
    over_tiles(false, [&](int64_t tile) { measure(sample, tile, count); });
    add_tiles(partials(sample), tiles, width(), sums);
    const GmresDecision decision = conclude_evaluation(sample, count);
    if (decision.move != GmresMove::kProject) {
      if (decision) {
        over_tiles(true, [&](int64_t tile) { move(sample, tile, decision); });
      }
      return;
    }
    const double* coefficients = sums + GmresSums::kDots;
    over_tiles(true, [&](int64_t tile) { project(sample, tile, count, coefficients); });
    add_tiles(partials(sample), tiles, width(), sums);
    GmresExtension extension;
    conclude_gmres_image(OneLane(), options, table(sample), count, sums, own_record(sample),
                         counter(sample), &extension);
    if (extension) {
      over_tiles(false, [&](int64_t tile) { finish(sample, tile, extension); });
    }
  }
};

void gmres_step(const Tensor& f_z, const Tensor& z, const Tensor& best_z, const Tensor& basis,
                const Tensor& start, const Tensor& start_residual, const Tensor& algebra,
                const Tensor& record, const Tensor& counters, const Tensor& active,
                const Tensor& scratch, double rtol, double atol, int64_t stall_steps,
                double divergence_factor) {
  const StepShape shape = check_gmres_step(f_z, z, best_z, basis, start, start_residual, algebra,
                                           record, counters, active, scratch, kTile);
  check_stopping(rtol, atol, /*damping=*/1.0, stall_steps, divergence_factor);
  const int64_t batch = shape.batch;
  const int64_t dim = shape.dim;
  const int64_t columns = shape.capacity;
  int64_t* counter = data<int64_t>(counters);
  const std::vector<int64_t>& running = running_samples(counter, batch);
  const int64_t most = check_counters(running, counter, shape.max_steps);
  STD_TORCH_CHECK(most <= columns, "a sample has ", most, " vectors, but there is room for ",
                  columns);
  with_state_type(z.scalar_type(), "z", [&](auto value) {
    using state_t = decltype(value);
    using accum_t = accumulate_t<state_t>;
    const GmresStep<state_t> step = {
        data<state_t>(f_z),
        f_z.stride(0),
        data<state_t>(z),
        data<state_t>(best_z),
        data<accum_t>(basis),
        {basis.stride(0), basis.stride(1)},
        data<accum_t>(start),
        data<accum_t>(start_residual),
        data<double>(algebra),
        data<double>(record),
        counter,
        data<double>(scratch),
        dim,
        columns,
        tile_count(dim),
        gmres_options<state_t>({rtol, atol, shape.max_steps, stall_steps, divergence_factor,
                                /*max_rejections=*/1})};
    const StreamPlan plan =
        plan_stream(static_cast<int64_t>(running.size()), dim, 2 * most, sizeof(state_t),
                    sizeof(accum_t), torch::stable::get_num_threads());
    const bool split_tiles = plan.regime == Regime::kTiles;
    for_each(static_cast<int64_t>(running.size()), plan.regime == Regime::kSamples,
             /*backwards=*/false,
             [&](int64_t i) { step.run(running[static_cast<size_t>(i)], split_tiles); });
  });
  *data<int64_t>(active) = count_running(counter, batch);
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CPU, m) {
  m.impl("gmres_step_", TORCH_BOX(&deq::gmres_step));
}
