// The Anderson step as a two-pass op.
// Formulas: docs/algebra.md, section 4. The CPU's counterpart: csrc/cpu/anderson.cpp.
//
// The first pass reads the changes of the residual and the second those of the image: no row is
// read by both, and none is kept on chip in between. Either pass completes the newest row of its
// own before it reads it, a thread only the elements that it reads itself.
#pragma once

#include <cstdint>

#include "algebra/anderson.h"
#include "algebra/multiply_add.h"
#include "algebra/types.h"
#include "cuda/norms.h"
#include "cuda/stored_rows.h"
#include "cuda/two_pass.h"

namespace deq {

template <typename state_t, typename history_type>
struct AndersonStep {
  using history_t = history_type;
  using accum_t = accumulate_t<state_t>;
  using Decision = AndersonDecision;
  static constexpr int kVector = Rows<history_t>::kVector;
  // Sums: ||r||^2, ||f||^2, <t_j, r> for all j, <t_j, t_newest> for all j.
  static constexpr int64_t kFirstSum = 0;
  static constexpr int kNorms = 2;

  const state_t* f_z;  // [batch, dim], rows f_stride apart
  int64_t f_stride;
  state_t* z;       // [batch, dim]
  state_t* best_z;  // [batch, dim]
  StoredRows<history_t> residual_changes;
  StoredRows<history_t> image_changes;
  state_t* last_residual;  // [batch, dim]
  double* algebra;         // [batch, capacity, 2 capacity]
  double* record;          // [batch, kNormColumns + max_steps]
  int64_t* counters;       // [batch, kCounterColumns]
  int64_t* active;         // [1]
  int64_t dim;
  int64_t capacity;
  AndersonOptions options;

  struct View {
    int count;      // changes that the first pass reads
    int newest;     // slot of the one that it completes, where there is any
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
    block.check(counter[kCount] >= 0, "counters must not claim less than no evaluation");
    block.check(counter[kSteps] >= 0 && counter[kSteps] < options.limits.max_steps,
                "a running sample must have a step of its trace left");
    const ChangeRing ring(capacity, counter[kCount]);
    // After the last evaluation, whatever it shows, nothing follows that needs the dots.
    const bool is_last = counter[kSteps] + 1 == options.limits.max_steps;
    return {is_last ? 0 : static_cast<int>(ring.count), static_cast<int>(ring.newest),
            static_cast<accum_t>(norms(sample)[kDirectionScale])};
  }
  DEQ_DEVICE int64_t sums(const View& view) const { return kNorms + 2 * view.count; }
  // The second pass reads other rows than the first.
  DEQ_DEVICE int rows(const View&) const { return 0; }
  DEQ_DEVICE Rows<history_t> tile_rows(int64_t sample, const Tile& tile) const {
    return residual_changes.tile_rows(sample, tile);
  }
  DEQ_DEVICE int64_t table_doubles(const View& view) const { return view.count * 2 * capacity; }
  DEQ_DEVICE double* table(int64_t sample) const {
    return algebra + sample * AndersonTable::table_size(capacity);
  }

  DEQ_DEVICE const state_t* f_tile(int64_t sample, const Tile& tile) const {
    return f_z + sample * f_stride + tile.begin;
  }

  template <typename Block>
  DEQ_DEVICE void measure(const Block& block, const View& view, int64_t sample, const Tile& tile,
                          const Rows<history_t>& rows, double* flush, const TileSums& sums) const {
    accum_t f[kGpuItems];
    accum_t change[kGpuItems];
    accum_t r[kGpuItems];
    load_residual<kVector>(block, f_tile(sample, tile), z + sample * dim + tile.begin, tile.size, f,
                           change, r);
    put_norms(block, r, f, flush);
    if (view.count > 0) {
      load_items<kVector>(block, last_residual + sample * dim + tile.begin, tile.size, change);
      DEQ_UNROLL
      for (int i = 0; i < kGpuItems; ++i) {
        r[i] *= view.scale;
        change[i] = multiply_add(-view.scale, change[i], r[i]);
      }
      store_items<kVector>(block, change, tile.size,
                           residual_changes.row(sample, view.newest) + tile.begin);
    }
    dot_rows<true>(block, rows, view.count, r, change, flush, sums.from(kNorms),
                   sums.from(kNorms + view.count));
    add_own_sums(block, view.count, kNorms, flush, sums);
  }

  template <typename Block>
  DEQ_DEVICE void conclude(const Block& block, const View& view, int64_t sample, double* table,
                           bool staged, double* totals, Decision* decision) const {
    const WarpLanes<Block> lanes = {block};
    double* const b = totals + kNorms;
    const double* const column = b + view.count;
    int64_t* const counter = this->counter(sample);
    const StepNorms measured =
        step_norms(block, totals, f_z + sample * f_stride, z + sample * dim, dim);
    conclude_anderson(lanes, options, AndersonTable{table, capacity}, dim, measured, b, column,
                      norms(sample), counter, decision);
    if (staged && decision->advance) {
      // What later steps read of what the conclusion wrote into its copy of the table.
      AndersonTable{this->table(sample), capacity}.set_newest(lanes, view.newest, view.count,
                                                              column);
    }
    if (lanes.first() && counter[kStatus] != kRunning) {
      block.subtract_one(active);
    }
  }

  template <typename Block>
  DEQ_DEVICE void apply(const Block& block, int64_t sample, const Tile& tile,
                        const Rows<history_t>&, const double* totals,
                        const Decision& decision) const {
    state_t* const z_tile = z + sample * dim + tile.begin;
    state_t* const best_tile = best_z + sample * dim + tile.begin;
    accum_t items[kGpuItems];
    if (decision.restore) {
      load_items<kVector>(block, best_tile, tile.size, items);
      store_items<kVector>(block, items, tile.size, z_tile);
      return;
    }
    accum_t other[kGpuItems];
    accum_t r[kGpuItems];
    load_residual<kVector>(block, f_tile(sample, tile), z_tile, tile.size, other, items, r);
    if (decision.keep) {
      store_items<kVector>(block, items, tile.size, best_tile);
    }
    if (!decision.advance) {
      return;
    }
    const accum_t beta = static_cast<accum_t>(options.damping);
    if (decision.count == 0) {
      DEQ_UNROLL
      for (int i = 0; i < kGpuItems; ++i) {
        items[i] = beta == accum_t(1) ? other[i] : multiply_add(beta, r[i], items[i]);
      }
      store_items<kVector>(block, items, tile.size, z_tile);
    }
    if (capacity == 0) {
      return;
    }
    DEQ_UNROLL
    for (int i = 0; i < kGpuItems; ++i) {
      other[i] = r[i];
    }
    store_items<kVector>(block, other, tile.size, last_residual + sample * dim + tile.begin);
    if (decision.newest >= 0) {
      finish_image_change(block, sample, tile, decision.newest, r, other);
    }
    accum_t correction[kGpuItems] = {};
    combine_rows(block, image_changes.tile_rows(sample, tile), decision.count, totals + kNorms,
                 accum_t(1), correction);
    // The step is taken along the correction as stored, so that its change matches the step.
    store_items<kVector>(block, correction, tile.size,
                         image_changes.row(sample, decision.next) + tile.begin);
    if (decision.count > 0) {
      DEQ_UNROLL
      for (int i = 0; i < kGpuItems; ++i) {
        items[i] += multiply_add(beta, r[i], correction[i]);
      }
      store_items<kVector>(block, items, tile.size, z_tile);
    }
  }

  // The newest row holds the correction that was added to the last damped image; now that the new
  // one is known, z + beta r, their difference is the correction plus beta r.
  template <typename Block>
  DEQ_DEVICE void finish_image_change(const Block& block, int64_t sample, const Tile& tile,
                                      int64_t slot, const accum_t (&r)[kGpuItems],
                                      accum_t (&change)[kGpuItems]) const {
    history_t* const row = image_changes.row(sample, slot) + tile.begin;
    load_items<kVector>(block, row, tile.size, change);
    DEQ_UNROLL
    for (int i = 0; i < kGpuItems; ++i) {
      change[i] = multiply_add(static_cast<accum_t>(options.damping), r[i], change[i]);
    }
    store_items<kVector>(block, change, tile.size, row);
  }
};

}  // namespace deq
