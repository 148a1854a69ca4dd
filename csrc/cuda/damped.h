// The damped fixed-point step, and the accumulation of the damped Neumann series, as two-pass ops.
// Formulas: docs/algebra.md, section 3. The CPU's counterpart: csrc/cpu/damped.cpp.
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/multiply_add.h"
#include "algebra/termination.h"
#include "algebra/types.h"
#include "cuda/norms.h"
#include "cuda/two_pass.h"

namespace deq {

// What an op has that stores no rows.
template <typename state_t>
struct NoRows {
  using history_t = state_t;
  static constexpr int kVector = Rows<history_t>::kVector;
  static constexpr int64_t kFirstSum = 0;
  // ||r||^2 and ||f||^2, or ||w_new - w||^2 and ||w_new||^2.
  static constexpr int kSums = 2;

  struct View {};

  DEQ_DEVICE int64_t sums(const View&) const { return kSums; }
  DEQ_DEVICE int rows(const View&) const { return 0; }
  DEQ_DEVICE Rows<history_t> tile_rows(int64_t, const Tile& tile) const {
    return {nullptr, 0, tile.size, false, {}};
  }
  DEQ_DEVICE int64_t table_doubles(const View&) const { return 0; }
  DEQ_DEVICE double* table(int64_t) const { return nullptr; }

  template <typename Block>
  DEQ_DEVICE void add_norms(const Block& block, const double* flush, const TileSums& sums) const {
    add_own_sums(block, /*rows=*/0, kSums, flush, sums);
  }
};

template <typename state_t>
struct DampedStep : NoRows<state_t> {
  using accum_t = accumulate_t<state_t>;
  using Base = NoRows<state_t>;
  using Base::kVector;
  using typename Base::View;

  const state_t* f_z;  // [batch, dim], rows f_stride apart
  int64_t f_stride;
  state_t* z;         // [batch, dim]
  state_t* best_z;    // [batch, dim]
  double* record;     // [batch, kNormColumns + max_steps]
  int64_t* counters;  // [batch, kCounterColumns]
  int64_t* active;    // [1]
  int64_t dim;
  double damping;
  Limits limits;

  struct Decision {
    bool keep;     // best_z <- z
    bool advance;  // z <- z + damping (f(z) - z)

    DEQ_DEVICE explicit operator bool() const { return keep || advance; }
  };

  DEQ_DEVICE int64_t* counter(int64_t sample) const { return counters + sample * kCounterColumns; }
  DEQ_DEVICE bool runs(int64_t sample) const { return counter(sample)[kStatus] == kRunning; }

  template <typename Block>
  DEQ_DEVICE View view(const Block& block, int64_t sample) const {
    const int64_t steps = counter(sample)[kSteps];
    block.check(steps >= 0 && steps < limits.max_steps,
                "a running sample must have a step of its trace left");
    return {};
  }

  template <typename Block>
  DEQ_DEVICE void measure(const Block& block, const View&, int64_t sample, const Tile& tile,
                          const Rows<state_t>&, double* flush, const TileSums& sums) const {
    accum_t f[kGpuItems];
    accum_t r[kGpuItems];
    load_residual<kVector>(block, f_z + sample * f_stride + tile.begin,
                           z + sample * dim + tile.begin, tile.size, f, r, r);
    put_norms(block, r, f, flush);
    this->add_norms(block, flush, sums);
  }

  template <typename Block>
  DEQ_DEVICE void conclude(const Block& block, const View&, int64_t sample, double*, bool,
                           double* totals, Decision* decision) const {
    const StepNorms measured =
        step_norms(block, totals, f_z + sample * f_stride, z + sample * dim, dim);
    if (block.lane() != 0) {
      return;
    }
    int64_t* const counter = this->counter(sample);
    const Verdict verdict = judge(measured.residual.root(), measured.f.root(), limits,
                                  record + sample * (kNormColumns + limits.max_steps), counter);
    *decision = {verdict.improved, verdict.action == Action::kAdvance};
    if (counter[kStatus] != kRunning) {
      block.subtract_one(active);
    }
  }

  template <typename Block>
  DEQ_DEVICE void apply(const Block& block, int64_t sample, const Tile& tile, const Rows<state_t>&,
                        const double*, const Decision& decision) const {
    state_t* const z_tile = z + sample * dim + tile.begin;
    accum_t items[kGpuItems];
    load_items<kVector>(block, z_tile, tile.size, items);
    if (decision.keep) {
      store_items<kVector>(block, items, tile.size, best_z + sample * dim + tile.begin);
    }
    if (decision.advance) {
      accum_t f[kGpuItems];
      load_items<kVector>(block, f_z + sample * f_stride + tile.begin, tile.size, f);
      const accum_t share = static_cast<accum_t>(damping);
      DEQ_UNROLL
      for (int i = 0; i < kGpuItems; ++i) {
        items[i] = share == accum_t(1) ? f[i] : multiply_add(share, f[i] - items[i], items[i]);
      }
      store_items<kVector>(block, items, tile.size, z_tile);
    }
  }
};

// w <- damping (l + J^T w) + (1 - damping) w, in the first pass; the second has nothing to do.
template <typename state_t>
struct NeumannStep : NoRows<state_t> {
  using accum_t = accumulate_t<state_t>;
  using Decision = NoSecondPass;
  using Base = NoRows<state_t>;
  using Base::kVector;
  using typename Base::View;

  const state_t* vjp;  // [batch, dim], rows vjp_stride apart
  int64_t vjp_stride;
  const state_t* cotangent;  // [batch, dim], rows cotangent_stride apart
  int64_t cotangent_stride;
  state_t* w;     // [batch, dim]
  double* norms;  // [batch, 2]
  int64_t dim;
  double damping;

  DEQ_DEVICE bool runs(int64_t) const { return true; }

  template <typename Block>
  DEQ_DEVICE View view(const Block&, int64_t) const {
    return {};
  }

  template <typename Block>
  DEQ_DEVICE void measure(const Block& block, const View&, int64_t sample, const Tile& tile,
                          const Rows<state_t>&, double* flush, const TileSums& sums) const {
    state_t* const w_tile = w + sample * dim + tile.begin;
    accum_t change[kGpuItems];
    accum_t updated[kGpuItems];
    load_items<kVector>(block, vjp + sample * vjp_stride + tile.begin, tile.size, updated);
    load_items<kVector>(block, cotangent + sample * cotangent_stride + tile.begin, tile.size,
                        change);
    DEQ_UNROLL
    for (int i = 0; i < kGpuItems; ++i) {
      change[i] += updated[i];
    }
    load_items<kVector>(block, w_tile, tile.size, updated);
    DEQ_UNROLL
    for (int i = 0; i < kGpuItems; ++i) {
      change[i] = static_cast<accum_t>(damping) * (change[i] - updated[i]);
      updated[i] += change[i];
    }
    put_norms(block, change, updated, flush);
    this->add_norms(block, flush, sums);
    store_items<kVector>(block, updated, tile.size, w_tile);
  }

  template <typename Block>
  DEQ_DEVICE void conclude(const Block& block, const View&, int64_t sample, double*, bool,
                           double* totals, Decision* decision) const {
    if (block.lane() == 0) {
      norms[sample * 2] = std::sqrt(totals[0]);
      norms[sample * 2 + 1] = std::sqrt(totals[1]);
      *decision = {};
    }
  }

  template <typename Block>
  DEQ_DEVICE void apply(const Block&, int64_t, const Tile&, const Rows<state_t>&, const double*,
                        const Decision&) const {}
};

}  // namespace deq
