// What follows from one evaluation of a structured cell, for one sample.
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/crop.h"
#include "algebra/macros.h"
#include "algebra/termination.h"

namespace deq {

// Records the evaluation whose `sums` (CellSum) are given in the sample's norms [kNormColumns], its
// element of the trace and its counters [kCounterColumns], and says where to go from it. With
// `fixed_steps` nothing stops before the last evaluation, whose residual decides, and no iterate is
// kept.
DEQ_HOST_DEVICE inline CellDecision decide_cell(const double* sums, const Limits& limits,
                                                bool fixed_steps, bool accelerate, double* norms,
                                                double* traced, int64_t* counters, Crop* last) {
  if (!fixed_steps) {
    return decide_cell_step(sums, accelerate, limits, norms, traced, counters, last);
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
  const bool met = finite && meets_tolerance(residual, f_norm, limits, norms);
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
