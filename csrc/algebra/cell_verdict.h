// What follows from one evaluation of a structured cell, for one sample.
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/activation.h"
#include "algebra/crop.h"
#include "algebra/macros.h"
#include "algebra/termination.h"

namespace deq {

// By rows, a change of at most this much counts as none, so that a row whose elements have lost
// their precision, or vanish while f is repeated, does not keep its sample from converging. The
// smallest normal number, and in float64 the root of about that, as norms are squared.
template <typename accum_t>
constexpr double kLeastChange = sizeof(accum_t) == sizeof(double) ? 0x1p-500 : 0x1p-126;

// Where a sample keeps the residual of its unsettled rows when that had last made progress, a
// column that is Broyden's elsewhere.
constexpr Norm kUnsettledResidual = kBaseResidual;

// The limits of a structured cell; by rows, the absolute tolerance allows for kLeastChange.
template <typename accum_t>
DEQ_HOST_DEVICE inline Limits cell_limits(Limits limits, NormKind norm) {
  if (norm == NormKind::kRows && limits.atol < kLeastChange<accum_t>) {
    limits.atol = kLeastChange<accum_t>;
  }
  return limits;
}

// Of one row: the square of ||f(z) - z|| where that is above the tolerance or NaN, else 0.
DEQ_HOST_DEVICE inline double unsettled(double residual_sq, double value_sq, double rtol,
                                        double atol) {
  return std::sqrt(residual_sq) <= atol + rtol * std::sqrt(value_sq) ? 0.0 : residual_sq;
}

// By rows, a sample has not converged before all of its rows have. On the way there the largest
// residual may long stand still while others fall, as when what rows know travels from one to the
// next; that is progress as well.
DEQ_HOST_DEVICE inline Limits row_limits(double unsettled_sq, Limits limits, double* norms,
                                         int64_t* counters) {
  if (unsettled_sq == 0.0) {
    return limits;
  }
  const double residual = std::sqrt(unsettled_sq);
  if (counters[kSteps] == 0) {
    norms[kUnsettledResidual] = HUGE_VAL;
  }
  if (residual < kProgressShare * norms[kUnsettledResidual]) {
    norms[kUnsettledResidual] = residual;
    counters[kProgressStep] = counters[kSteps];
  }
  limits.atol = -HUGE_VAL;
  return limits;
}

// Records the evaluation whose `sums` (CellSum) are given in the sample's norms [kNormColumns], its
// element of the trace and its counters [kCounterColumns], and says where to go from it. With
// `fixed_steps` nothing stops before the last evaluation, whose residual decides, and no iterate is
// kept.
DEQ_HOST_DEVICE inline CellDecision decide_cell(const double* sums, NormKind norm,
                                                const Limits& limits, bool fixed_steps,
                                                bool accelerate, double* norms, double* traced,
                                                int64_t* counters, Crop* last) {
  const bool by_rows = norm == NormKind::kRows;
  if (!fixed_steps) {
    return decide_cell_step(
        sums, accelerate,
        by_rows ? row_limits(sums[kUnsettledNorm], limits, norms, counters) : limits, norms, traced,
        counters, last);
  }
  const double residual = std::sqrt(sums[kResidualNorm]);
  const double f_norm = std::sqrt(sums[kValueNorm]);
  const int64_t step = counters[kSteps]++;
  *traced = residual;
  if (step == 0) {
    mark_first(residual, f_norm, norms);
  }
  norms[kBestResidual] = norms[kProgressResidual] = residual;
  const bool finite = residual < HUGE_VAL && f_norm < HUGE_VAL;
  const bool settled = !by_rows || sums[kUnsettledNorm] == 0.0;
  const bool met = finite && settled && meets_tolerance(residual, f_norm, limits, norms);
  if (finite && !met) {
    follow_growth(residual, f_norm, norms);
  }
  if (step + 1 < limits.max_steps) {
    return {CellAction::kAdvance, false, {}};
  }
  counters[kStatus] = !finite ? kDiverged : met ? kConverged : kMaxSteps;
  return {CellAction::kStop, false, {}};
}

}  // namespace deq
