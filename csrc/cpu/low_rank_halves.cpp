// The two halves of the sum-form product, each by itself: dots with the rows, and combinations of
// them; and Gram-Schmidt, which is made of both. All arithmetic is in float64, which costs no time
// where memory is what is waited for. Formulas: docs/algebra.md, section 2. Reference:
// deq_kernels/ops/low_rank/reference.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "cpu/scratch.h"
#include "cpu/streaming.h"
#include "torch/arguments.h"

namespace deq {
namespace {

// The largest count, after a check that none exceeds the rows stored.
int64_t checked_counts(const int64_t* counts, const ProductShape& shape) {
  int64_t most = 0;
  for (int64_t sample = 0; sample < shape.batch; ++sample) {
    STD_TORCH_CHECK(counts[sample] >= 0 && counts[sample] <= shape.capacity, "count of sample ",
                    sample, " is ", counts[sample], ", but ", shape.capacity, " rows are stored");
    most = std::max(most, counts[sample]);
  }
  return most;
}

Tensor low_rank_dots(const Tensor& rows, const Tensor& count, const Tensor& x) {
  const ProductShape shape = check_low_rank_dots(rows, count, x);
  const int64_t* counts = data<int64_t>(count);
  const int64_t most = checked_counts(counts, shape);
  Tensor dots =
      torch::stable::new_empty(x, {shape.batch, shape.columns, shape.capacity}, ScalarType::Double);
  double* out = data<double>(dots);
  if (x.numel() == 0) {
    std::fill_n(out, dots.numel(), 0.0);
    return dots;
  }
  const int64_t tiles = tile_count(shape.dim);
  // Zero beyond the counts.
  std::vector<double> scratch = new_scratch({shape.batch, tiles, shape.columns, shape.capacity});
  const int64_t width = shape.columns * shape.capacity;
  std::vector<int64_t> samples;
  for (int64_t sample = 0; sample < shape.batch; ++sample) {
    if (counts[sample] > 0) {
      samples.push_back(sample);
    } else {
      std::fill_n(out + sample * width, width, 0.0);
    }
  }
  with_state_and_history_type(x.scalar_type(), rows.scalar_type(), [&](auto s, auto h) {
    using state_t = decltype(s);
    using history_t = decltype(h);
    const auto& state = history_tiles<state_t, double>();
    const auto& history = history_tiles<history_t, double>();
    const StreamPlan plan = plan_stream(shape.batch, shape.dim, most, sizeof(state_t),
                                        sizeof(history_t), torch::stable::get_num_threads());
    two_passes(
        plan, samples, /*backwards=*/false,
        [&](int64_t sample, int64_t tile) {
          const auto [begin, size] = tile_range(tile, shape.dim);
          const history_t* first = data<history_t>(rows) + sample * rows.stride(0) + begin;
          double* partials = scratch.data() + (sample * tiles + tile) * width;
          TileBuffer<double> x_tile;
          for (int64_t c = 0; c < shape.columns; ++c) {
            const state_t* column = data<state_t>(x) + (sample * shape.columns + c) * shape.dim;
            state.load(column + begin, size, x_tile.values);
            history.dots(first, rows.stride(1), counts[sample], x_tile.values, size,
                         partials + c * shape.capacity);
          }
        },
        [&](int64_t sample) {
          add_tiles(scratch.data() + sample * tiles * width, tiles, width, out + sample * width);
          return false;
        },
        [](int64_t, int64_t, bool) {});
  });
  return dots;
}

Tensor low_rank_combine(const Tensor& rows, const Tensor& count, const Tensor& coefficients,
                        const Tensor& x, double scale) {
  const ProductShape shape = check_low_rank_combine(rows, count, coefficients, x, scale);
  const int64_t* counts = data<int64_t>(count);
  const int64_t most = checked_counts(counts, shape);
  Tensor y = torch::stable::empty_like(x);
  if (x.numel() == 0) {
    return y;
  }
  with_state_and_history_type(x.scalar_type(), rows.scalar_type(), [&](auto s, auto h) {
    using state_t = decltype(s);
    using history_t = decltype(h);
    const auto& state = history_tiles<state_t, double>();
    const auto& history = history_tiles<history_t, double>();
    const StreamPlan plan = plan_stream(shape.batch, shape.dim, most, sizeof(state_t),
                                        sizeof(history_t), torch::stable::get_num_threads());
    const bool parallel = plan.regime != Regime::kSerial;
    for_each(shape.batch * plan.tiles, parallel, /*backwards=*/false, [&](int64_t i) {
      const int64_t sample = i / plan.tiles;
      const auto [begin, size] = tile_range(i % plan.tiles, shape.dim);
      const history_t* first = data<history_t>(rows) + sample * rows.stride(0) + begin;
      TileBuffer<double> y_tile;
      for (int64_t c = 0; c < shape.columns; ++c) {
        const int64_t column = sample * shape.columns + c;
        if (scale != 0.0) {
          state.load(data<state_t>(x) + column * shape.dim + begin, size, y_tile.values);
        } else {
          std::fill_n(y_tile.values, kTile, 0.0);
        }
        history.combine(first, rows.stride(1), counts[sample],
                        data<double>(coefficients) + column * shape.capacity, scale, size,
                        y_tile.values);
        state.store_rounded(y_tile.values, size, data<state_t>(y) + column * shape.dim + begin);
      }
    });
  });
  return y;
}

// Both halves twice, one sample after the other: three of the four readings of a sample's rows find
// them in a cache, the third one tile by tile in the nearest.
Tensor low_rank_project_out(const Tensor& rows, const Tensor& count, const Tensor& x) {
  const ProductShape shape = check_low_rank_project_out(rows, count, x);
  const int64_t* counts = data<int64_t>(count);
  const int64_t most = checked_counts(counts, shape);
  const int64_t width = shape.capacity;
  Tensor dots =
      torch::stable::new_empty(x, {shape.batch, shape.columns, width}, ScalarType::Double);
  double* out = data<double>(dots);
  if (x.numel() == 0) {
    std::fill_n(out, dots.numel(), 0.0);
    return dots;
  }
  const int64_t tiles = tile_count(shape.dim);
  const int64_t problems = shape.batch * shape.columns;
  // Of each column the partial sums of its tiles, [tiles, width], and second dots, [width]. Zero
  // beyond the counts.
  std::vector<double> scratch = new_scratch({problems, tiles + 1, width});
  with_state_and_history_type(x.scalar_type(), rows.scalar_type(), [&](auto s, auto h) {
    using state_t = decltype(s);
    using history_t = decltype(h);
    const auto& state = history_tiles<state_t, double>();
    const auto& history = history_tiles<history_t, double>();
    const int64_t stride = rows.stride(1);
    const StreamPlan plan = plan_stream(problems, shape.dim, 2 * most, sizeof(state_t),
                                        sizeof(history_t), torch::stable::get_num_threads());
    const bool split_tiles = plan.regime == Regime::kTiles;
    for_each(problems, plan.regime == Regime::kSamples, /*backwards=*/false, [&](int64_t problem) {
      const int64_t sample = problem / shape.columns;
      const int64_t known = counts[sample];
      const history_t* first = data<history_t>(rows) + sample * rows.stride(0);
      state_t* x_row = data<state_t>(x) + problem * shape.dim;
      double* partials = scratch.data() + problem * (tiles + 1) * width;
      double* once = out + problem * width;
      double* twice = partials + tiles * width;
      if (known == 0) {
        std::fill_n(once, width, 0.0);
        return;
      }
      for_each(tiles, split_tiles, false, [&](int64_t tile) {
        const auto [begin, size] = tile_range(tile, shape.dim);
        TileBuffer<double> x_tile;
        state.load(x_row + begin, size, x_tile.values);
        history.dots(first + begin, stride, known, x_tile.values, size, partials + tile * width);
      });
      add_tiles(partials, tiles, width, once);
      // Each time with the opposite sign, which needs no other coefficients than the dots.
      for_each(tiles, split_tiles, true, [&](int64_t tile) {
        const auto [begin, size] = tile_range(tile, shape.dim);
        TileBuffer<double> x_tile;
        state.load(x_row + begin, size, x_tile.values);
        history.combine(first + begin, stride, known, once, -1.0, size, x_tile.values);
        state.store_rounded(x_tile.values, size, x_row + begin);
        history.dots(first + begin, stride, known, x_tile.values, size, partials + tile * width);
      });
      add_tiles(partials, tiles, width, twice);
      for_each(tiles, split_tiles, false, [&](int64_t tile) {
        const auto [begin, size] = tile_range(tile, shape.dim);
        TileBuffer<double> x_tile;
        state.load(x_row + begin, size, x_tile.values);
        history.combine(first + begin, stride, known, twice, -1.0, size, x_tile.values);
        state.store_rounded(x_tile.values, size, x_row + begin);
      });
    });
  });
  return dots;
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CPU, m) {
  m.impl("low_rank_dots", TORCH_BOX(&deq::low_rank_dots));
  m.impl("low_rank_combine", TORCH_BOX(&deq::low_rank_combine));
  m.impl("low_rank_project_out_", TORCH_BOX(&deq::low_rank_project_out));
}
