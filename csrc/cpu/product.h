// y = scale * x + sum_j coefficient_j combine_j, with coefficients made from <dot_j, x>: the shape
// of every product with a low-rank inverse, for several right-hand sides at a time.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "cpu/scratch.h"
#include "cpu/streaming.h"
#include "torch/arguments.h"

namespace deq {

// rows_of_rank(rank) is how many stored rows a sample of that rank uses;
// coefficients(sample, rank, q) turns the dots q into coefficients in place.
template <typename RowsOfRank, typename Coefficients>
Tensor two_pass_product(const ProductShape& shape, const Tensor& dot_rows,
                        const Tensor& combine_rows, const Tensor& rank, const Tensor& x,
                        double scale, const RowsOfRank& rows_of_rank,
                        const Coefficients& coefficients) {
  Tensor y = torch::stable::empty_like(x);
  const int64_t* ranks = data<int64_t>(rank);
  std::vector<int64_t> samples(static_cast<size_t>(shape.batch));
  int64_t most = 0;
  for (int64_t sample = 0; sample < shape.batch; ++sample) {
    samples[static_cast<size_t>(sample)] = sample;
    STD_TORCH_CHECK(ranks[sample] >= 0 && ranks[sample] <= shape.capacity &&
                        rows_of_rank(ranks[sample]) <= shape.capacity,
                    "rank of sample ", sample, " is ", ranks[sample],
                    ", which does not fit the rows stored");
    most = std::max(most, ranks[sample]);
  }
  if (x.numel() == 0) {
    return y;
  }
  const int64_t tiles = tile_count(shape.dim);
  std::vector<double> scratch =
      new_scratch({shape.batch, tiles + 1, shape.columns, shape.capacity});
  const int64_t width = shape.columns * shape.capacity;
  auto partials = [&](int64_t sample) { return scratch.data() + sample * (tiles + 1) * width; };
  auto totals = [&](int64_t sample) { return partials(sample) + tiles * width; };

  with_state_and_history_type(x.scalar_type(), dot_rows.scalar_type(), [&](auto s, auto h) {
    using state_t = decltype(s);
    using history_t = decltype(h);
    using accum_t = accumulate_t<state_t>;
    const auto& state = state_tiles<state_t>();
    const auto& history = history_tiles<history_t, accum_t>();
    auto row = [&](const Tensor& rows, int64_t sample) {
      return data<history_t>(rows) + sample * rows.stride(0);
    };
    auto column = [&](const Tensor& t, int64_t sample, int64_t c) {
      return data<state_t>(t) + (sample * shape.columns + c) * shape.dim;
    };
    const StreamPlan plan = plan_stream(shape.batch, shape.dim, most, sizeof(state_t),
                                        sizeof(history_t), torch::stable::get_num_threads());
    two_passes(
        plan, samples, /*backwards=*/false,
        [&](int64_t sample, int64_t tile) {
          const auto [begin, size] = tile_range(tile, shape.dim);
          TileBuffer<accum_t> x_tile;
          for (int64_t c = 0; c < shape.columns; ++c) {
            state.load(column(x, sample, c) + begin, accum_t(1), size, x_tile.values);
            history.dots(row(dot_rows, sample) + begin, dot_rows.stride(1),
                         rows_of_rank(ranks[sample]), x_tile.values, size,
                         partials(sample) + tile * width + c * shape.capacity);
          }
        },
        [&](int64_t sample) {
          if (ranks[sample] > 0) {
            add_tiles(partials(sample), tiles, width, totals(sample));
            for (int64_t c = 0; c < shape.columns; ++c) {
              coefficients(sample, ranks[sample], totals(sample) + c * shape.capacity);
            }
          }
          return true;
        },
        [&](int64_t sample, int64_t tile, bool) {
          const auto [begin, size] = tile_range(tile, shape.dim);
          TileBuffer<accum_t> y_tile;
          for (int64_t c = 0; c < shape.columns; ++c) {
            state.load(column(x, sample, c) + begin, static_cast<accum_t>(scale), size,
                       y_tile.values);
            history.combine(row(combine_rows, sample) + begin, combine_rows.stride(1),
                            rows_of_rank(ranks[sample]), totals(sample) + c * shape.capacity, 1.0,
                            size, y_tile.values);
            state.store(y_tile.values, size, column(y, sample, c) + begin);
          }
        });
  });
  return y;
}

}  // namespace deq
