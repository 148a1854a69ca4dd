// Steps of a structured cell that look back on one earlier iterate: docs/algebra.md, section 3.
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/macros.h"
#include "algebra/termination.h"

namespace deq {

// What is summed over a sample at each evaluation. The norms are squared.
enum CellSum : int64_t {
  kResidualNorm,
  kValueNorm,
  // <r - r', r - r'> and <r - r', r> with the residual r' of the iterate before, both times the
  // square of `unit()`; only where steps are accelerated.
  kChangeSquare,
  kChangeResidual,
  kCellSums
};

// What a sample remembers of the iterate before, beside its vectors.
struct Secant {
  bool known = false;         // whether there is one
  bool extrapolated = false;  // whether the step from it was more than the damped one
  double residual = 0.0;      // its residual

  // A power of two that brings residuals near 1, so that no product of theirs leaves the range of
  // the type they are summed in.
  template <typename accum_t>
  DEQ_HOST_DEVICE accum_t unit() const {
    constexpr int kLimit = sizeof(accum_t) == sizeof(double) ? 1000 : 120;
    if (!known || !(residual > 0.0)) {
      return accum_t(1);
    }
    const int exponent = std::ilogb(residual);
    return static_cast<accum_t>(std::ldexp(1.0, exponent > kLimit    ? -kLimit
                                                : exponent < -kLimit ? kLimit
                                                                     : -exponent));
  }
};

enum class CellAction { kStop, kExtrapolate, kGoBack };

struct CellDecision {
  CellAction action;
  bool improved;  // this iterate is the one to keep
  double secant;  // gamma: the next iterate is g - gamma (g - g'), g = z + lambda (f(z) - z)
};

// The secant of the step from an evaluation, which becomes the one before.
DEQ_HOST_DEVICE inline double look_back(const double* sums, double residual, Secant* last) {
  double gamma = 0.0;
  if (last->known) {
    gamma = sums[kChangeResidual] / sums[kChangeSquare];
    gamma = std::fabs(gamma) < HUGE_VAL ? gamma : 0.0;
  }
  *last = {true, gamma != 0.0, residual};
  return gamma;
}

// Judges an evaluation, and says where to go from it. A step that was extrapolated and did not
// lower the residual is taken back: the next iterate is the damped step from the iterate before,
// g'. So is one that left the finite numbers, as long as there are steps.
DEQ_HOST_DEVICE inline CellDecision decide_cell_step(const double* sums, bool accelerate,
                                                     const Limits& limits, double* norms,
                                                     double* traced, int64_t* counters,
                                                     Secant* last) {
  const double residual = std::sqrt(sums[kResidualNorm]);
  const Verdict verdict = judge(sums[kResidualNorm], sums[kValueNorm], limits, norms, traced,
                                counters, {last->extrapolated, last->residual});
  if (verdict.action == Action::kBacktrack) {
    *last = Secant();
    return {CellAction::kGoBack, false, 0.0};
  }
  if (verdict.action != Action::kAdvance) {
    return {CellAction::kStop, verdict.improved, 0.0};
  }
  const double gamma = accelerate ? look_back(sums, residual, last) : 0.0;
  return {CellAction::kExtrapolate, verdict.improved, gamma};
}

}  // namespace deq
