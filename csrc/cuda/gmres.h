// The step of GMRES as two two-pass ops: what an evaluation shows and the first projection of an
// image, then its second one and what follows from it.
// Formulas: docs/algebra.md, section 5. The CPU's counterpart: csrc/cpu/gmres.cpp.
//
// The tables stay in global memory: a conclusion reads each entry of R^-1 once.
#pragma once

#include <cstdint>
#include <type_traits>

#include "algebra/gmres.h"
#include "algebra/multiply_add.h"
#include "algebra/types.h"
#include "cuda/norms.h"
#include "cuda/stored_rows.h"
#include "cuda/two_pass.h"

namespace deq {

// What both ops work on.
template <typename state_t>
struct GmresProblem {
  using accum_t = accumulate_t<state_t>;
  using history_t = accum_t;
  static constexpr int kVector = Rows<history_t>::kVector;
  static constexpr int64_t kFirstSum = 0;

  const state_t* f_z;  // [batch, dim], rows f_stride apart
  int64_t f_stride;
  state_t* z;                 // [batch, dim]
  state_t* best_z;            // [batch, dim]
  StoredRows<accum_t> basis;  // [batch, columns + 1, dim]
  accum_t* start;             // w_0, [batch, dim]
  accum_t* start_residual;    // r(w_0), [batch, dim]
  double* algebra;            // [batch, GmresTable::table_size(columns)]
  double* record;             // [batch, kNormColumns + max_steps]
  int64_t* counters;          // [batch, kCounterColumns]
  int64_t* active;            // [1]
  int64_t dim;
  int64_t columns;
  GmresOptions options;

  struct View {
    int count;  // vectors of the basis
  };

  DEQ_DEVICE int64_t* counter(int64_t sample) const { return counters + sample * kCounterColumns; }
  DEQ_DEVICE double* own_record(int64_t sample) const {
    return record + sample * (kNormColumns + options.limits.max_steps);
  }
  DEQ_DEVICE GmresTable gmres_table(int64_t sample) const {
    return {algebra + sample * GmresTable::table_size(columns), columns};
  }
  DEQ_DEVICE bool is_running(int64_t sample) const { return counter(sample)[kStatus] == kRunning; }

  template <typename Block>
  DEQ_DEVICE View view(const Block& block, int64_t sample) const {
    const int64_t* counter = this->counter(sample);
    block.check(counter[kCount] >= 0 && counter[kCount] <= columns,
                "counters must not claim more vectors than the basis has room for");
    block.check(counter[kSteps] >= 0 && counter[kSteps] < options.limits.max_steps,
                "a running sample must have a step of its trace left");
    return {static_cast<int>(counter[kCount])};
  }
  DEQ_DEVICE int rows(const View& view) const { return view.count; }
  DEQ_DEVICE Rows<history_t> tile_rows(int64_t sample, const Tile& tile) const {
    return basis.tile_rows(sample, tile);
  }
  DEQ_DEVICE int64_t table_doubles(const View&) const { return 0; }
  DEQ_DEVICE double* table(int64_t) const { return nullptr; }

  template <typename Block>
  DEQ_DEVICE void count_out(const Block& block, int64_t sample) const {
    if (block.lane() == 0 && !is_running(sample)) {
      block.subtract_one(active);
    }
  }

  // z <- w_0 + t v, from the elements of v.
  template <typename Block>
  DEQ_DEVICE void probe(const Block& block, int64_t sample, const Tile& tile,
                        const accum_t (&v)[kGpuItems]) const {
    const accum_t scale = static_cast<accum_t>(gmres_table(sample).scale());
    accum_t point[kGpuItems];
    load_items<kVector>(block, start + sample * dim + tile.begin, tile.size, point);
    DEQ_UNROLL
    for (int i = 0; i < kGpuItems; ++i) {
      point[i] = multiply_add(scale, v[i], point[i]);
    }
    store_items<kVector>(block, point, tile.size, z + sample * dim + tile.begin);
  }
};

template <typename state_t>
struct GmresEvaluation : GmresProblem<state_t> {
  using Base = GmresProblem<state_t>;
  using typename Base::accum_t;
  using typename Base::history_t;
  using typename Base::View;
  using Decision = GmresDecision;
  using Base::kVector;

  DEQ_DEVICE bool runs(int64_t sample) const { return this->is_running(sample); }
  DEQ_DEVICE int64_t sums(const View& view) const { return GmresSums::kDots + view.count; }

  template <typename Block>
  DEQ_DEVICE void measure(const Block& block, const View& view, int64_t sample, const Tile& tile,
                          const Rows<history_t>& rows, double* flush, const TileSums& sums) const {
    accum_t f[kGpuItems];
    accum_t point[kGpuItems];
    accum_t r[kGpuItems];
    load_residual<kVector>(block, this->f_z + sample * this->f_stride + tile.begin,
                           this->z + sample * this->dim + tile.begin, tile.size, f, point, r);
    double own[GmresSums::kDots] = {};
    DEQ_UNROLL
    for (int i = 0; i < kGpuItems; ++i) {
      const double residual = static_cast<double>(r[i]);
      const double image = static_cast<double>(f[i]);
      const double at = static_cast<double>(point[i]);
      own[GmresSums::kResidual] = multiply_add(residual, residual, own[GmresSums::kResidual]);
      own[GmresSums::kImage] = multiply_add(image, image, own[GmresSums::kImage]);
      own[GmresSums::kPoint] = multiply_add(at, at, own[GmresSums::kPoint]);
      own[GmresSums::kAlong] = multiply_add(residual, at, own[GmresSums::kAlong]);
    }
    put_own_sums(block, own, flush);
    if (view.count > 0) {
      load_items<kVector>(block, this->start_residual + sample * this->dim + tile.begin, tile.size,
                          point);
      // M v, which waits where the next vector of the basis will be. t is a power of two.
      const accum_t share = static_cast<accum_t>(1.0 / this->gmres_table(sample).scale());
      DEQ_UNROLL
      for (int i = 0; i < kGpuItems; ++i) {
        r[i] = multiply_add(share, point[i], -(share * r[i]));
      }
      store_items<kVector>(block, r, tile.size, this->basis.row(sample, view.count) + tile.begin);
    }
    const TileSums dots = sums.from(GmresSums::kDots);
    dot_rows<false, double>(block, rows, view.count, r, r, flush, dots, dots);
    add_own_sums(block, view.count, GmresSums::kDots, flush, sums);
  }

  template <typename Block>
  DEQ_DEVICE void conclude(const Block& block, const View& view, int64_t sample, double*, bool,
                           double* totals, Decision* decision) const {
    StepNorms measured = {};
    GmresStart start = {};
    if (view.count == 0) {
      const state_t* f = this->f_z + sample * this->f_stride;
      const state_t* point = this->z + sample * this->dim;
      measured = step_norms(block, totals + GmresSums::kResidual, f, point, this->dim);
      start = start_of(block, totals, measured.residual.root(), f, point);
    }
    conclude_gmres_evaluation(WarpLanes<Block>{block}, this->options, this->gmres_table(sample),
                              view.count, measured, start, totals, this->own_record(sample),
                              this->counter(sample), decision);
    this->count_out(block, sample);
  }

  template <typename Block>
  DEQ_DEVICE GmresStart start_of(const Block& block, const double* totals, double residual,
                                 const state_t* f, const state_t* point) const {
    GmresStart start;
    const bool told = read_start(totals, residual, &start);
    if constexpr (std::is_same_v<state_t, double>) {
      if (!told) {
        start.norm =
            measure_with_unit(block, this->dim, [&](int64_t i) { return point[i]; }).root();
        double along[1] = {};
        for (int64_t i = block.lane(); i < this->dim; i += kGpuWarp) {
          along[0] = multiply_add((f[i] - point[i]) / residual, point[i], along[0]);
        }
        start.along = sum_over_warp(block, along);
      }
    }
    return start;
  }

  template <typename Block>
  DEQ_DEVICE void apply(const Block& block, int64_t sample, const Tile& tile,
                        const Rows<history_t>& rows, const double* totals,
                        const Decision& decision) const {
    const int64_t at = sample * this->dim + tile.begin;
    if (decision.move == GmresMove::kProject) {
      accum_t* const image = this->basis.row(sample, decision.count) + tile.begin;
      double wide[kGpuItems];
      load_items<kVector>(block, image, tile.size, wide);
      combine_rows(block, rows, decision.count, totals + GmresSums::kDots, 1.0, wide);
      store_items<kVector>(block, wide, tile.size, image);
      return;
    }
    accum_t point[kGpuItems];
    if (decision.move == GmresMove::kRestore) {
      load_items<kVector>(block, this->best_z + at, tile.size, point);
      store_items<kVector>(block, point, tile.size, this->z + at);
      return;
    }
    accum_t f[kGpuItems];
    accum_t r[kGpuItems];
    load_residual<kVector>(block, this->f_z + sample * this->f_stride + tile.begin, this->z + at,
                           tile.size, f, point, r);
    if (decision.keep) {
      store_items<kVector>(block, point, tile.size, this->best_z + at);
    }
    if (decision.move == GmresMove::kRelax) {
      store_items<kVector>(block, f, tile.size, this->z + at);
    } else if (decision.move == GmresMove::kBegin) {
      store_items<kVector>(block, point, tile.size, this->start + at);
      store_items<kVector>(block, r, tile.size, this->start_residual + at);
      DEQ_UNROLL
      for (int i = 0; i < kGpuItems; ++i) {
        r[i] = static_cast<accum_t>(static_cast<double>(r[i]) * decision.factor);
      }
      store_items<kVector>(block, r, tile.size, this->basis.row(sample, 0) + tile.begin);
      this->probe(block, sample, tile, r);
    }
  }
};

template <typename state_t>
struct GmresImage : GmresProblem<state_t> {
  using Base = GmresProblem<state_t>;
  using typename Base::accum_t;
  using typename Base::history_t;
  using typename Base::View;
  using Decision = GmresExtension;
  using Base::kVector;

  DEQ_DEVICE bool runs(int64_t sample) const {
    return this->is_running(sample) && this->gmres_table(sample).pending() == 1.0;
  }
  DEQ_DEVICE int64_t sums(const View& view) const { return GmresRest::kDots + view.count; }

  template <typename Block>
  DEQ_DEVICE void measure(const Block& block, const View& view, int64_t sample, const Tile& tile,
                          const Rows<history_t>& rows, double* flush, const TileSums& sums) const {
    accum_t rest[kGpuItems];
    accum_t first[kGpuItems];
    load_items<kVector>(block, this->basis.row(sample, view.count) + tile.begin, tile.size, rest);
    load_items<kVector>(block, this->start + sample * this->dim + tile.begin, tile.size, first);
    double own[GmresRest::kDots] = {};
    DEQ_UNROLL
    for (int i = 0; i < kGpuItems; ++i) {
      const double rest_i = static_cast<double>(rest[i]);
      own[GmresRest::kNorm] = multiply_add(rest_i, rest_i, own[GmresRest::kNorm]);
      own[GmresRest::kAlong] =
          multiply_add(rest_i, static_cast<double>(first[i]), own[GmresRest::kAlong]);
    }
    put_own_sums(block, own, flush);
    const TileSums dots = sums.from(GmresRest::kDots);
    dot_rows<false, double>(block, rows, view.count, rest, rest, flush, dots, dots);
    add_own_sums(block, view.count, GmresRest::kDots, flush, sums);
  }

  template <typename Block>
  DEQ_DEVICE void conclude(const Block& block, const View& view, int64_t sample, double*, bool,
                           double* totals, Decision* decision) const {
    conclude_gmres_image(WarpLanes<Block>{block}, this->options, this->gmres_table(sample),
                         view.count, totals, this->own_record(sample), this->counter(sample),
                         decision);
    this->count_out(block, sample);
  }

  template <typename Block>
  DEQ_DEVICE void apply(const Block& block, int64_t sample, const Tile& tile,
                        const Rows<history_t>& rows, const double* totals,
                        const Decision& decision) const {
    accum_t* const image = this->basis.row(sample, decision.count) + tile.begin;
    const accum_t* const from =
        decision.end ? this->start + sample * this->dim + tile.begin : image;
    double wide[kGpuItems];
    load_items<kVector>(block, from, tile.size, wide);
    combine_rows(block, rows, decision.count, totals + GmresRest::kDots,
                 decision.end ? 1.0 : decision.factor, wide);
    accum_t items[kGpuItems];
    DEQ_UNROLL
    for (int i = 0; i < kGpuItems; ++i) {
      items[i] = static_cast<accum_t>(wide[i]);
    }
    if (decision.end) {
      store_items<kVector>(block, items, tile.size, this->z + sample * this->dim + tile.begin);
      return;
    }
    store_items<kVector>(block, items, tile.size, image);
    this->probe(block, sample, tile, items);
  }
};

}  // namespace deq
