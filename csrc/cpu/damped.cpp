// The damped fixed-point step, and the accumulation of the damped Neumann series.
// Formulas: docs/algebra.md, section 3. Reference: deq_kernels/ops/damped/reference.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "algebra/termination.h"
#include "cpu/norms.h"
#include "cpu/samples.h"
#include "cpu/streaming.h"
#include "torch/arguments.h"

namespace deq {
namespace {

struct Decision {
  bool keep;     // best_z <- z
  bool advance;  // z <- z + damping (f(z) - z)

  explicit operator bool() const { return keep || advance; }
};

void damped_step(const Tensor& f_z, const Tensor& z, const Tensor& best_z, const Tensor& record,
                 const Tensor& counters, const Tensor& active, const Tensor& scratch, double rtol,
                 double atol, double damping, int64_t stall_steps, double divergence_factor) {
  const StepShape shape =
      check_damped_step(f_z, z, best_z, record, counters, active, scratch, kTile);
  check_stopping(rtol, atol, damping, stall_steps, divergence_factor);
  const int64_t batch = shape.batch;
  const int64_t dim = shape.dim;
  const int64_t max_steps = shape.max_steps;
  const int64_t tiles = tile_count(dim);
  int64_t* counter = data<int64_t>(counters);
  const std::vector<int64_t>& running = running_samples(counter, batch);
  check_counters(running, counter, max_steps);
  const Limits limits = {rtol,
                         atol,
                         max_steps,
                         stall_steps,
                         divergence_factor,
                         /*max_rejections=*/0};
  double* records = data<double>(record);
  double* partials = data<double>(scratch);
  with_state_type(z.scalar_type(), "z", [&](auto value) {
    using state_t = decltype(value);
    using accum_t = accumulate_t<state_t>;
    const auto& state = state_tiles<state_t>();
    const state_t* f_data = data<state_t>(f_z);
    const int64_t f_stride = f_z.stride(0);
    state_t* z_data = data<state_t>(z);
    state_t* best_data = data<state_t>(best_z);
    const StreamPlan plan =
        plan_stream(static_cast<int64_t>(running.size()), dim, 0, sizeof(state_t), sizeof(state_t),
                    torch::stable::get_num_threads());
    two_passes(
        plan, running, /*backwards=*/false,
        [&](int64_t sample, int64_t tile) {
          const auto [begin, size] = tile_range(tile, dim);
          TileBuffer<accum_t> r;
          TileBuffer<accum_t> f_tile;
          double* out = partials + (sample * (tiles + 1) + tile) * 2;
          state.residual_norms(f_data + sample * f_stride + begin, z_data + sample * dim + begin,
                               size, r.values, f_tile.values, out, out + 1);
        },
        [&](int64_t sample) {
          double* sums = partials + (sample * (tiles + 1) + tiles) * 2;
          add_tiles(sums - tiles * 2, tiles, 2, sums);
          const StepNorms norms =
              step_norms(sums, f_data + sample * f_stride, z_data + sample * dim, dim);
          const Verdict verdict =
              judge(norms.residual.root(), norms.f.root(), limits,
                    sample_record(records, sample, max_steps), counter + sample * kCounterColumns);
          return Decision{verdict.improved, verdict.action == Action::kAdvance};
        },
        [&](int64_t sample, int64_t tile, const Decision& decision) {
          const auto [begin, size] = tile_range(tile, dim);
          state_t* z_tile = z_data + sample * dim + begin;
          if (decision.keep) {
            std::copy_n(z_tile, size, best_data + sample * dim + begin);
          }
          if (decision.advance) {
            state.relax(f_data + sample * f_stride + begin, static_cast<accum_t>(damping), size,
                        z_tile);
          }
        });
  });
  *data<int64_t>(active) = count_running(counter, batch);
}

void neumann_step(const Tensor& vjp, const Tensor& cotangent, const Tensor& w, const Tensor& norms,
                  double damping) {
  const NeumannShape shape = check_neumann_step(vjp, cotangent, w, norms, damping);
  const int64_t batch = shape.batch;
  const int64_t dim = shape.dim;
  const int64_t tiles = tile_count(dim);
  // Reused by the calling thread, so that a step allocates nothing.
  static thread_local std::vector<double> scratch;
  scratch.resize(static_cast<size_t>(batch * tiles * 2));
  double* const partials = scratch.data();
  with_state_type(w.scalar_type(), "w", [&](auto value) {
    using state_t = decltype(value);
    using accum_t = accumulate_t<state_t>;
    const auto& state = state_tiles<state_t>();
    const StreamPlan plan = plan_stream(batch, dim, 0, sizeof(state_t), sizeof(state_t),
                                        torch::stable::get_num_threads());
    const bool parallel = plan.regime != Regime::kSerial;
    for_each(batch * tiles, parallel, false, [&](int64_t item) {
      const int64_t sample = item / tiles;
      const auto [begin, size] = tile_range(item % tiles, dim);
      TileBuffer<accum_t> changed;
      TileBuffer<accum_t> updated;
      double* out = partials + item * 2;
      state.neumann(data<state_t>(vjp) + sample * vjp.stride(0) + begin,
                    data<state_t>(cotangent) + sample * cotangent.stride(0) + begin,
                    static_cast<accum_t>(damping), size, data<state_t>(w) + sample * dim + begin,
                    changed.values, updated.values, out, out + 1);
    });
  });
  double* norm = data<double>(norms);
  for (int64_t sample = 0; sample < batch; ++sample) {
    double sums[2];
    add_tiles(partials + sample * tiles * 2, tiles, 2, sums);
    norm[sample * 2] = std::sqrt(sums[0]);
    norm[sample * 2 + 1] = std::sqrt(sums[1]);
  }
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CPU, m) {
  m.impl("damped_step_", TORCH_BOX(&deq::damped_step));
  m.impl("neumann_step_", TORCH_BOX(&deq::neumann_step));
}
