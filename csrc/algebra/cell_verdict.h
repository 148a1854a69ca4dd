// What follows from one evaluation of a structured cell, for one sample.
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/macros.h"
#include "algebra/termination.h"

namespace deq {

struct CellVerdict {
  bool advance;   // the sample goes on
  bool improved;  // the iterate that was evaluated is the one to keep
};

// `squares` are ||f(z) - z||^2 and ||f(z)||^2. Records the evaluation in the sample's norms
// [kNormColumns], its element of the trace and its counters [kCounterColumns]. With `fixed_steps`
// nothing stops before the last evaluation, whose residual decides, and no iterate is kept.
DEQ_HOST_DEVICE inline CellVerdict judge_cell(const double* squares, const Limits& limits,
                                              bool fixed_steps, double* norms, double* traced,
                                              int64_t* counters) {
  if (!fixed_steps) {
    const Verdict verdict = judge(squares[0], squares[1], limits, norms, traced, counters);
    return {verdict.action == Action::kAdvance, verdict.improved};
  }
  const double residual = std::sqrt(squares[0]);
  const int64_t step = counters[kSteps]++;
  *traced = residual;
  if (step == 0) {
    norms[kFirstResidual] = residual;
  }
  norms[kBestResidual] = norms[kProgressResidual] = residual;
  if (step + 1 < limits.max_steps) {
    return {true, false};
  }
  const bool finite = squares[0] < HUGE_VAL && squares[1] < HUGE_VAL;
  const bool met = residual <= limits.atol + limits.rtol * std::sqrt(squares[1]);
  counters[kStatus] = !finite ? kDiverged : met ? kConverged : kMaxSteps;
  return {false, false};
}

}  // namespace deq
