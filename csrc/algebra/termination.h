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
  // Where ||f(z)|| was last marked: its value, and the residual there; infinite at the first mark.
  kMarkedImage,
  kMarkedResidual,
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

// ||f(z)|| has grown where it is above this multiple of the one marked.
constexpr double kGrowth = 2.0;
// The share of the marked residual that convergence then demands.
constexpr double kDemandedShare = 0.5;

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

// The norms of a sample's first evaluation, which the later ones are compared with.
DEQ_HOST_DEVICE inline void mark_first(double residual, double f_norm, double* norms) {
  norms[kFirstResidual] = residual;
  norms[kMarkedImage] = f_norm;
  norms[kMarkedResidual] = HUGE_VAL;
}

DEQ_HOST_DEVICE inline bool has_grown(double f_norm, const double* norms) {
  return f_norm > kGrowth * norms[kMarkedImage];
}

// Whether the residual is within the tolerance: at most atol, or atol + rtol ||f(z)|| where that
// says something. An f(z) that runs away makes the tolerance as large as one likes; so, once
// ||f(z)|| has doubled since it was first marked, the residual must have halved since the last
// mark.
DEQ_HOST_DEVICE inline bool meets_tolerance(double residual, double f_norm, const Limits& limits,
                                            const double* norms) {
  const bool moved = norms[kMarkedResidual] < HUGE_VAL;
  const double marked = moved ? norms[kMarkedResidual] : norms[kFirstResidual];
  const bool trusted = !(moved || has_grown(f_norm, norms)) || residual <= kDemandedShare * marked;
  return residual <= limits.atol + (trusted ? limits.rtol * f_norm : 0.0);
}

// Moves the mark to an evaluation that is not within the tolerance, if ||f(z)|| has doubled.
DEQ_HOST_DEVICE inline void follow_growth(double residual, double f_norm, double* norms) {
  if (has_grown(f_norm, norms)) {
    norms[kMarkedImage] = f_norm;
    norms[kMarkedResidual] = residual;
  }
}

// Judges the evaluation f(z) of one running sample from ||f(z) - z|| and ||f(z)||, and records
// it in its norms [kNormColumns], its element of the trace and its counters [kCounterColumns].
//
// Converged when `meets_tolerance` says so, which an atol below 0 with rtol 0 never does, not even
// at a residual of 0. A residual that is not finite, or has grown
// by divergence_factor, is rejected: back to the best iterate while rejections are left, else
// diverged. The first evaluation is always kept, so that there is an iterate to return. A step that
// can be shortened is, instead of rejected or accepted with too large a residual, where an
// evaluation is left for that.
DEQ_HOST_DEVICE inline Verdict judge(double residual, double f_norm, const Limits& limits,
                                     double* norms, double* traced, int64_t* counters,
                                     const Trial& trial = {false, 0.0}) {
  const double infinity = HUGE_VAL;
  const bool finite = residual < infinity && f_norm < infinity;
  const int64_t step = counters[kSteps]++;
  const bool first = step == 0;
  *traced = residual;
  if (first) {
    mark_first(residual, f_norm, norms);
    norms[kBestResidual] = infinity;
    norms[kProgressResidual] = infinity;
  }
  if (finite && meets_tolerance(residual, f_norm, limits, norms)) {
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
  if (!rejected && !backtrack) {
    follow_growth(residual, f_norm, norms);
  }
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
DEQ_HOST_DEVICE inline Verdict judge(double residual, double f_norm, const Limits& limits,
                                     double* record, int64_t* counters,
                                     const Trial& trial = {false, 0.0}) {
  return judge(residual, f_norm, limits, record, record + kNormColumns + counters[kSteps], counters,
               trial);
}

}  // namespace deq
