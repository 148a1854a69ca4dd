// When a sample stops, and which iterate it keeps: one rule for every fixed-point solver.
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/macros.h"

namespace deq {

// Mirrors deq_kernels.Status.
enum Status : int64_t { kRunning = 0, kConverged = 1, kMaxSteps = 2, kStalled = 3, kDiverged = 4 };

// Columns of the per-sample tables; deq_kernels/ops/termination.py names the same.
enum Norm : int64_t {
  kBestResidual,
  kFirstResidual,
  kProgressResidual,
  // Of Broyden's method alone: where the newest direction starts, and gamma.
  kBaseResidual,
  kGamma,
  // What the stored vectors that dots are taken with are multiplied with, of Broyden's and
  // Anderson's.
  kDirectionScale,
  kNormColumns
};
enum Counter : int64_t {
  kStatus,
  kCount,
  kSteps,
  kRejections,
  kProgressStep,
  kBacktracks,  // of Broyden's method alone, as is the next one
  kEstimates,
  kCounterColumns
};

// Far more of anything than a solve could count: nothing that is added to it overflows.
constexpr int64_t kMostCounted = int64_t(1) << 62;

// The first of a running sample's counters [kCounterColumns] that is none, or kCounterColumns.
DEQ_HOST_DEVICE inline int64_t first_bad_counter(const int64_t* counters) {
  int64_t column = kStatus + 1;
  while (column < kCounterColumns && counters[column] >= 0 && counters[column] <= kMostCounted) {
    ++column;
  }
  return column;
}

// A residual must fall below this share of the last mark to count as progress.
constexpr double kProgressShare = 0.99;

struct Limits {
  double rtol;
  double atol;
  int64_t max_steps;         // evaluations of f
  int64_t stall_steps;       // evaluations without progress; 0: never stalled
  double divergence_factor;  // a residual above this times the first one is rejected
  int64_t max_rejections;    // rejected steps that are met by a restart
};

// What a line search allows the evaluation at hand.
struct Trial {
  bool can_shorten;  // the step that led here
  double accepted;   // the largest residual at which it is not shortened
};

enum class Action { kAdvance, kStop, kReject, kBacktrack };

struct Verdict {
  Action action;
  bool improved;  // this iterate is the one to keep
  bool rejected;  // the residual says nothing about the Jacobian here
};

// Judges the evaluation f(z) of one running sample from ||f(z) - z||^2 and ||f(z)||^2, and records
// it in its norms [kNormColumns], its element of the trace and its counters [kCounterColumns].
//
// Converged when ||f(z) - z|| <= atol + rtol ||f(z)||. A residual that is not finite, or has grown
// by divergence_factor, is rejected: back to the best iterate while rejections are left, else
// diverged. The first evaluation is always kept, so that there is an iterate to return. A step that
// can be shortened is, instead of rejected or accepted with too large a residual, where an
// evaluation is left for that.
DEQ_HOST_DEVICE inline Verdict judge(double residual_sq, double f_sq, const Limits& limits,
                                     double* norms, double* traced, int64_t* counters,
                                     const Trial& trial = {false, 0.0}) {
  const double residual = std::sqrt(residual_sq);
  const double infinity = HUGE_VAL;
  const bool finite = residual_sq < infinity && f_sq < infinity;
  const int64_t step = counters[kSteps]++;
  const bool first = step == 0;
  *traced = residual;
  if (first) {
    norms[kFirstResidual] = residual;
    norms[kBestResidual] = infinity;
    norms[kProgressResidual] = infinity;
  }
  if (finite && residual <= limits.atol + limits.rtol * std::sqrt(f_sq)) {
    norms[kBestResidual] = residual;
    counters[kStatus] = kConverged;
    return {Action::kStop, true, false};
  }
  const bool rejected = !finite || residual > limits.divergence_factor * norms[kFirstResidual];
  const bool improved = first || (finite && residual < norms[kBestResidual]);
  if (improved && finite) {
    norms[kBestResidual] = residual;
    if (residual < kProgressShare * norms[kProgressResidual]) {
      norms[kProgressResidual] = residual;
      counters[kProgressStep] = step;
    }
  }
  const bool last = step + 1 >= limits.max_steps;
  const bool backtrack = trial.can_shorten && !last && (rejected || residual > trial.accepted);
  if (rejected && !backtrack && (first || counters[kRejections] >= limits.max_rejections)) {
    counters[kStatus] = kDiverged;
    return {Action::kStop, improved, rejected};
  }
  if (last) {
    counters[kStatus] = kMaxSteps;
    return {Action::kStop, improved, rejected};
  }
  if (rejected && !backtrack) {
    ++counters[kRejections];
    return {Action::kReject, false, true};
  }
  if (!rejected && limits.stall_steps > 0 && step - counters[kProgressStep] >= limits.stall_steps) {
    counters[kStatus] = kStalled;
    return {Action::kStop, improved, rejected};
  }
  return {backtrack ? Action::kBacktrack : Action::kAdvance, improved, rejected};
}

// The same where a `record` holds the norms and then the trace [max_steps].
DEQ_HOST_DEVICE inline Verdict judge(double residual_sq, double f_sq, const Limits& limits,
                                     double* record, int64_t* counters,
                                     const Trial& trial = {false, 0.0}) {
  return judge(residual_sq, f_sq, limits, record, record + kNormColumns + counters[kSteps],
               counters, trial);
}

}  // namespace deq
