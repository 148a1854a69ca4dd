// Which evaluations of a structured cell may follow from the one before by a product of low
// precision: docs/algebra.md, section 3.
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/crop.h"
#include "algebra/termination.h"

namespace deq {

// Errors of difference products add up from one exact evaluation to the next. They are small beside
// the residual as long as that has not fallen below this share of the last exact one, ...
constexpr double kExactShare = 1.0 / 16;
// ... and beside what they are allowed to sum up to if there are no more of them than this.
constexpr int64_t kMostApproximate = 8;
// An evaluation whose residual is foreseen to be below this multiple of the tolerance may be the
// last, which has to be exact.
constexpr double kExactEnd = 1.5;
// Where a step lowers the residual to no less than this share the error of a product counts twenty
// times or more.
constexpr double kSlowShare = 0.95;
// An exact residual that is this many times the approximate one before it belies that one.
constexpr double kBelied = 2.0;

// Of one sample. An approximate evaluation is recorded and leads on, but it never stops a sample
// and never is the one to keep: that takes an exact one, which every first, every last and every
// taken back evaluation is.
class CellPrecision {
 public:
  explicit CellPrecision(bool approximate) : allowed_(approximate) {}

  // Whether the evaluation at hand is.
  bool exact() const { return exact_; }

  // To be called with an exact evaluation that leads on.
  void follow_exact(double residual, double tolerance, const Limits& limits,
                    const CellDecision& decision, int64_t steps) {
    if (approximate_ > 0 && residual > kBelied * last_residual_) {
      allowed_ = false;
    }
    approximate_ = 0;
    exact_residual_ = residual;
    choose(residual, tolerance, limits, decision, steps);
  }

  // What follows from an approximate evaluation. Counts and traces it.
  CellDecision follow_approximate(const double* sums, double tolerance, const Limits& limits,
                                  double* traced, int64_t* counters, Crop* last) {
    const double residual = std::sqrt(sums[kResidualNorm]);
    ++counters[kSteps];
    *traced = residual;
    ++approximate_;
    const bool combined = last->combined;
    const double most = combined ? last->residual : kSlowShare * last->residual;
    CellDecision decision = {combined ? CellAction::kGoBack : CellAction::kRepeat, false, {}};
    if (residual <= most) {
      decision = {CellAction::kAdvance, false, look_back(sums, residual, last)};
    } else {
      *last = Crop();
    }
    choose(residual, tolerance, limits, decision, counters[kSteps]);
    return decision;
  }

 private:
  void choose(double residual, double tolerance, const Limits& limits, const CellDecision& decision,
              int64_t steps) {
    const bool slow = steps > 1 && !(residual <= kSlowShare * last_residual_);
    const bool last = steps + 1 >= limits.max_steps || residual <= tolerance ||
                      (steps > 1 && residual * residual <= kExactEnd * tolerance * last_residual_);
    // The exact evaluation that follows must find the progress of all of them in time.
    const int64_t most = limits.stall_steps > 0 && limits.stall_steps <= kMostApproximate
                             ? limits.stall_steps - 1
                             : kMostApproximate;
    exact_ = !allowed_ || decision.action != CellAction::kAdvance || slow || last ||
             approximate_ >= most || !(residual > kExactShare * exact_residual_);
    last_residual_ = residual;
  }

  bool allowed_;
  bool exact_ = true;
  int64_t approximate_ = 0;      // since the last exact one
  double exact_residual_ = 0.0;  // the last one
  double last_residual_ = 0.0;
};

}  // namespace deq
