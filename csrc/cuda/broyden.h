// The Broyden step and the products with its inverse, as two-pass ops.
// Formulas: docs/algebra.md, section 1. The CPU's counterpart: csrc/cpu/broyden.cpp.
#pragma once

#include <cstdint>

#include "algebra/broyden_step.h"
#include "algebra/multiply_add.h"
#include "algebra/product_form.h"
#include "algebra/types.h"
#include "cuda/norms.h"
#include "cuda/two_pass.h"

namespace deq {

// Directions [batch, capacity, dim] and their rank-sized tables [batch, capacity, capacity + 2].
template <typename history_t>
struct Directions {
  history_t* data;
  int64_t sample_stride;  // elements
  int64_t row_stride;
  bool aligned;  // every row begins on 16 bytes
  double* algebra;
  int64_t capacity;

  DEQ_DEVICE history_t* row(int64_t sample, int64_t j) const {
    return data + sample * sample_stride + j * row_stride;
  }
  DEQ_DEVICE Rows<history_t> tile_rows(int64_t sample, const Tile& tile) const {
    return {row(sample, 0) + tile.begin, row_stride, tile.size, aligned, {}};
  }
  DEQ_DEVICE double* table(int64_t sample) const {
    return algebra + sample * ProductForm::table_size(capacity);
  }
  // The rows of the table that belong to `count` directions.
  DEQ_DEVICE int64_t table_doubles(int64_t count) const { return count * (capacity + 2); }
};

template <typename state_t, typename history_type>
struct BroydenStep {
  using history_t = history_type;
  using accum_t = accumulate_t<state_t>;
  using Decision = StepDecision;
  static constexpr int kVector = Rows<history_t>::kVector;
  // Sums: ||r||^2, ||f||^2, <p_j, r> for all j, <p_j, p_newest> for all j.
  static constexpr int64_t kFirstSum = 0;
  static constexpr int kNorms = 2;

  const state_t* f_z;  // [batch, dim], rows f_stride apart
  int64_t f_stride;
  state_t* z;       // [batch, dim]
  state_t* best_z;  // [batch, dim]
  Directions<history_t> directions;
  double* record;     // [batch, kNormColumns + max_steps]
  int64_t* counters;  // [batch, kCounterColumns]
  int64_t* active;    // [1]
  int64_t dim;
  StepOptions options;

  struct View {
    int count;      // directions that the first pass reads
    accum_t scale;  // what they are stored with
  };

  DEQ_DEVICE int64_t* counter(int64_t sample) const { return counters + sample * kCounterColumns; }
  DEQ_DEVICE double* norms(int64_t sample) const {
    return record + sample * (kNormColumns + options.limits.max_steps);
  }
  DEQ_DEVICE bool runs(int64_t sample) const { return counter(sample)[kStatus] == kRunning; }

  template <typename Block>
  DEQ_DEVICE View view(const Block& block, int64_t sample) const {
    const int64_t* counter = this->counter(sample);
    block.check(counter[kCount] >= 0 && counter[kCount] <= directions.capacity,
                "counters must not claim more directions than there is room for");
    block.check(counter[kSteps] >= 0 && counter[kSteps] < options.limits.max_steps,
                "a running sample must have a step of its trace left");
    const int count = only_judges(options, counter) ? 0 : static_cast<int>(counter[kCount]);
    return {count, static_cast<accum_t>(norms(sample)[kDirectionScale])};
  }
  DEQ_DEVICE int64_t sums(const View& view) const { return kNorms + 2 * view.count; }
  DEQ_DEVICE int rows(const View& view) const { return view.count; }
  DEQ_DEVICE Rows<history_t> tile_rows(int64_t sample, const Tile& tile) const {
    return directions.tile_rows(sample, tile);
  }
  DEQ_DEVICE int64_t table_doubles(const View& view) const {
    return directions.table_doubles(view.count);
  }
  DEQ_DEVICE double* table(int64_t sample) const { return directions.table(sample); }

  DEQ_DEVICE const state_t* f_tile(int64_t sample, const Tile& tile) const {
    return f_z + sample * f_stride + tile.begin;
  }

  template <typename Block>
  DEQ_DEVICE void measure(const Block& block, const View& view, int64_t sample, const Tile& tile,
                          const Rows<history_t>& rows, double* flush, const TileSums& sums) const {
    accum_t f[kGpuItems];
    accum_t other[kGpuItems];
    accum_t r[kGpuItems];
    load_residual<kVector>(block, f_tile(sample, tile), z + sample * dim + tile.begin, tile.size, f,
                           other, r);
    if (view.count > 0) {
      load_row(block, rows, view.count - 1, other);
    }
    put_norms(block, r, f, flush);
    DEQ_UNROLL
    for (int i = 0; i < kGpuItems; ++i) {
      r[i] *= view.scale;
    }
    dot_rows<true>(block, rows, view.count, r, other, flush, sums.from(kNorms),
                   sums.from(kNorms + view.count));
    add_own_sums(block, view.count, kNorms, flush, sums);
  }

  template <typename Block>
  DEQ_DEVICE void conclude(const Block& block, const View& view, int64_t sample, double* table,
                           bool staged, double* totals, Decision* decision) const {
    const WarpLanes<Block> lanes = {block};
    const ProductForm form = {table, directions.capacity};
    double* const q = totals + kNorms;
    const double* const column = q + view.count;
    int64_t* const counter = this->counter(sample);
    const StepNorms measured =
        step_norms(block, totals, f_z + sample * f_stride, z + sample * dim, dim);
    conclude_step(lanes, options, form, dim, measured, q, column, norms(sample), counter, decision);
    if (staged && (decision->extend || decision->backtrack)) {
      publish(lanes, form, sample, *decision);
    }
    if (lanes.first() && counter[kStatus] != kRunning) {
      block.subtract_one(active);
    }
  }

  // Takes what the conclusion changed in its copy of the table over into the table.
  template <typename Lanes>
  DEQ_DEVICE void publish(const Lanes& lanes, const ProductForm& staged, int64_t sample,
                          const Decision& decision) const {
    const ProductForm form = {directions.table(sample), directions.capacity};
    const int64_t count = decision.slot();
    if (decision.backtrack) {
      if (lanes.first()) {
        form.step(count - 1) = staged.step(count - 1);
      }
      return;
    }
    // Everything has moved where a factor was dropped; otherwise the newest row and column are new.
    for (int64_t j = decision.drop || count == 0 ? 0 : count - 1; j < count; ++j) {
      for_each_lane(lanes, 0, count, [&](int64_t i) {
        form.row(j)[i] = staged.row(j)[i];
        form.row(i)[j] = staged.row(i)[j];
      });
      if (lanes.first()) {
        form.step(j) = staged.step(j);
        form.weight(j) = staged.weight(j);
      }
    }
    if (lanes.first()) {
      form.step(count) = staged.step(count);
    }
  }

  template <typename Block>
  DEQ_DEVICE void apply(const Block& block, int64_t sample, const Tile& tile,
                        const Rows<history_t>& rows, const double* totals,
                        const Decision& decision) const {
    state_t* const z_tile = z + sample * dim + tile.begin;
    state_t* const best_tile = best_z + sample * dim + tile.begin;
    accum_t items[kGpuItems];
    if (decision.restore) {
      load_items<kVector>(block, best_tile, tile.size, items);
      store_items<kVector>(block, items, tile.size, z_tile);
      return;
    }
    accum_t f[kGpuItems];
    accum_t p[kGpuItems];
    load_residual<kVector>(block, f_tile(sample, tile), z_tile, tile.size, f, items, p);
    if (decision.keep) {
      store_items<kVector>(block, items, tile.size, best_tile);
    }
    if (decision.backtrack) {
      load_row(block, rows, decision.count - 1, p);
      move(block, items, static_cast<accum_t>(decision.scale), p, tile.size, z_tile);
    }
    if (!decision.extend) {
      return;
    }
    combine_rows(block, rows, decision.count, totals + kNorms, static_cast<accum_t>(decision.scale),
                 p);
    for (int j = 1; decision.drop && j < decision.count; ++j) {
      load_row(block, rows, j, f);
      store_items<kVector>(block, f, tile.size, directions.row(sample, j - 1) + tile.begin);
    }
    // The step is taken along the direction as stored, so that the inverse matches the step.
    store_items<kVector>(block, p, tile.size, directions.row(sample, decision.slot()) + tile.begin);
    if (decision.advance) {
      move(block, items, static_cast<accum_t>(decision.step(options.damping)), p, tile.size,
           z_tile);
    }
  }

  // z <- z + step p, from this thread's elements of both.
  template <typename Block>
  DEQ_DEVICE static void move(const Block& block, accum_t (&z_items)[kGpuItems], accum_t step,
                              const accum_t (&p)[kGpuItems], int size, state_t* z_tile) {
    DEQ_UNROLL
    for (int i = 0; i < kGpuItems; ++i) {
      z_items[i] = multiply_add(step, p[i], z_items[i]);
    }
    store_items<kVector>(block, z_items, size, z_tile);
  }
};

// y = H x or H^T x. A problem is one right-hand side of one sample.
template <typename state_t, typename history_type>
struct BroydenProduct {
  using history_t = history_type;
  using accum_t = accumulate_t<state_t>;
  static constexpr int kVector = Rows<history_t>::kVector;
  // Sums: room for the decision, <p_j, x> for all j.
  static constexpr int64_t kFirstSum = kDecisionDoubles;

  const state_t* x;  // [batch, columns, dim]
  state_t* y;        // [batch, columns, dim]
  Directions<history_t> directions;
  const int64_t* rank;  // [batch]
  int64_t columns;
  int64_t dim;
  double scale;
  bool transpose;

  struct View {
    int64_t rank;
    int count;  // directions read
  };
  struct Decision {
    int64_t count;
    int64_t valid;

    DEQ_DEVICE explicit operator bool() const { return valid != 0; }
  };

  DEQ_DEVICE int64_t sample(int64_t problem) const { return problem / columns; }
  DEQ_DEVICE bool runs(int64_t) const { return true; }

  template <typename Block>
  DEQ_DEVICE View view(const Block& block, int64_t problem) const {
    const int64_t r = rank[sample(problem)];
    block.check(r >= 0 && r < kMostCounted && directions_of_rank(r) <= directions.capacity,
                "rank must fit the directions stored");
    return {r, static_cast<int>(directions_of_rank(r))};
  }
  DEQ_DEVICE int64_t sums(const View& view) const { return kFirstSum + view.count; }
  DEQ_DEVICE int rows(const View& view) const { return view.count; }
  DEQ_DEVICE Rows<history_t> tile_rows(int64_t problem, const Tile& tile) const {
    return directions.tile_rows(sample(problem), tile);
  }
  DEQ_DEVICE int64_t table_doubles(const View& view) const {
    return directions.table_doubles(view.rank);
  }
  DEQ_DEVICE double* table(int64_t problem) const { return directions.table(sample(problem)); }

  template <typename Block>
  DEQ_DEVICE void measure(const Block& block, const View& view, int64_t problem, const Tile& tile,
                          const Rows<history_t>& rows, double* flush, const TileSums& sums) const {
    accum_t x_items[kGpuItems];
    load_items<kVector>(block, x + problem * dim + tile.begin, tile.size, x_items);
    const TileSums dots = sums.from(kFirstSum);
    dot_rows<false>(block, rows, view.count, x_items, x_items, flush, dots, dots);
  }

  template <typename Block>
  DEQ_DEVICE void conclude(const Block& block, const View& view, int64_t, double* table, bool,
                           double* totals, Decision* decision) const {
    const WarpLanes<Block> lanes = {block};
    product_coefficients(lanes, ProductForm{table, directions.capacity}, view.rank, scale,
                         transpose, totals + kFirstSum);
    if (lanes.first()) {
      *decision = {view.count, 1};
    }
  }

  template <typename Block>
  DEQ_DEVICE void apply(const Block& block, int64_t problem, const Tile& tile,
                        const Rows<history_t>& rows, const double* totals,
                        const Decision& decision) const {
    accum_t items[kGpuItems];
    load_items<kVector>(block, x + problem * dim + tile.begin, tile.size, items);
    combine_rows(block, rows, static_cast<int>(decision.count), totals + kFirstSum,
                 static_cast<accum_t>(scale), items);
    store_items<kVector>(block, items, tile.size, y + problem * dim + tile.begin);
  }
};

}  // namespace deq
