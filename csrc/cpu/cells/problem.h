// What a structured cell's iteration works on, in the layout of tiles.h, and its judgement.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <new>

#include "algebra/cell_precision.h"
#include "algebra/cell_verdict.h"
#include "algebra/termination.h"
#include "cpu/cells/differences.h"
#include "cpu/cells/tiles.h"
#include "cpu/history_pool.h"
#include "cpu/samples.h"
#include "cpu/tiles.h"

namespace deq {

// Rows of a sample whose norms share a partial sum, and that are taken together by one thread.
constexpr int64_t kCellRows = 48;

// Elements per column that a thread needs for the two sides of a product.
constexpr int64_t kCellRoom = 2 * kCellRows;

// Uninitialised memory for vectors; grows, and keeps nothing of what it held.
template <typename T>
class CellBuffer {
 public:
  CellBuffer() = default;
  CellBuffer(const CellBuffer&) = delete;
  CellBuffer& operator=(const CellBuffer&) = delete;
  ~CellBuffer() { release(); }

  T* resize(int64_t size) {
    if (size > size_) {
      release();
      const int64_t bytes = size * static_cast<int64_t>(sizeof(T));
      pooled_ = bytes >= HistoryPool::kHugePage;
      values_ = static_cast<T*>(pooled_ ? history_pool().take(bytes)
                                        : ::operator new(static_cast<size_t>(bytes), kAlignment));
      size_ = size;
    }
    return values_;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};

  void release() {
    if (pooled_) {
      history_pool().give_back(values_);
    } else {
      ::operator delete(values_, kAlignment);
    }
    pooled_ = false;
    values_ = nullptr;
    size_ = 0;
  }

  T* values_ = nullptr;
  int64_t size_ = 0;
  bool pooled_ = false;  // large ones are, on large pages
};

// Rows of `dim` elements in the state's type, as the caller has them.
template <typename state_t>
struct CellRows {
  state_t* values;  // null: there are none
  int64_t stride;
};

template <typename state_t>
struct CellProblem {
  using accum_t = accumulate_t<state_t>;

  int64_t dim;
  int64_t stride;         // of the padded rows
  const accum_t* packed;  // V
  // V for products of differences; null: there are none
  const BFloat16Pair* packed_pairs;
  bool finite;          // V and S are, so that what is zero has a product that is
  const int64_t* crow;  // null: no S
  const int64_t* col;
  const accum_t* values;
  CellRows<const state_t> bias;
  CellRows<const state_t> scale;
  state_t* z;
  double* records;
  int64_t* counters;
  Activation activation;
  NormKind norm;
  double damping;
  bool fixed_steps;
  bool accelerate;
  Limits limits;

  // Padded copies of `count` rows from `first` on.
  void load_rows(const CellRows<const state_t>& from, int64_t first, int64_t count,
                 accum_t* out) const {
    const state_t* values = from.values + first * from.stride;
    if (from.stride == stride && dim == stride) {
      state_tiles<state_t>().load(values, accum_t(1), count * dim, out);
      return;
    }
    for (int64_t row = 0; row < count; ++row) {
      state_tiles<state_t>().load(values + row * from.stride, accum_t(1), dim, out + row * stride);
    }
  }

  void store_rows(const accum_t* rows, int64_t first, int64_t count) const {
    if (dim == stride) {
      state_tiles<state_t>().store(rows, count * dim, z + first * dim);
      return;
    }
    for (int64_t row = 0; row < count; ++row) {
      state_tiles<state_t>().store(rows + row * stride, dim, z + (first + row) * dim);
    }
  }

  // What of the end of an evaluation of `rows` rows does not depend on where they are.
  template <typename small_t>
  void describe(int64_t rows, CellFinish<accum_t, small_t>* finish) const {
    finish->activation = activation;
    finish->norm = norm;
    finish->rtol = limits.rtol;
    finish->atol = limits.atol;
    finish->damping = static_cast<accum_t>(damping);
    finish->dim = dim;
    finish->stride = stride;
    finish->rows = rows;
  }

  // The same of a step of `size` elements.
  template <typename small_t>
  CellStep<accum_t, small_t> step(const CellWeights& weights, int64_t size) const {
    CellStep<accum_t, small_t> step = {};
    step.length = static_cast<accum_t>(damping * (1.0 - weights.share));
    step.share = static_cast<accum_t>(weights.share);
    step.momentum = static_cast<accum_t>(weights.momentum);
    step.size = size;
    return step;
  }

  CellDecision decide(int64_t sample, const double* sums, Crop* last) const {
    double* record = sample_record(records, sample, limits.max_steps);
    int64_t* counter = counters + sample * kCounterColumns;
    return decide_cell(sums, norm, limits, fixed_steps, accelerate, record,
                       record + kNormColumns + counter[kSteps], counter, last);
  }

  // The same, of an evaluation that need not have been exact.
  CellDecision decide(int64_t sample, const double* sums, Crop* last,
                      CellPrecision* precision) const {
    int64_t* counter = counters + sample * kCounterColumns;
    const double tolerance = limits.atol + limits.rtol * std::sqrt(sums[kValueNorm]);
    if (!precision->exact()) {
      double* record = sample_record(records, sample, limits.max_steps);
      return precision->follow_approximate(sums, tolerance, limits,
                                           record + kNormColumns + counter[kSteps], counter, last);
    }
    const CellDecision decision = decide(sample, sums, last);
    precision->follow_exact(std::sqrt(sums[kResidualNorm]), tolerance, limits, decision,
                            counter[kSteps]);
    return decision;
  }
};

}  // namespace deq
