// Steps of a structured cell by conjugate residuals: docs/algebra.md, section 3.
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
  // <u, u>, <u, v>, <v, v> and <u, r> with u = o - r and v = o' - o, for the combined residuals o
  // and o' of the two steps before, all times the square of `unit()`; only where steps are
  // accelerated.
  kSquareU,
  kProductUV,
  kSquareV,
  kProductUR,
  // Of the rows that do not meet the tolerance for themselves, the largest squared norm of f(z) -
  // z; only by rows.
  kUnsettledNorm,
  kCellPadding,  // sums are taken in pairs
  kCellSums
};

// What a sample remembers of the steps before, beside its vectors.
struct Crop {
  int known = 0;          // how many of o and o' there are
  bool combined = false;  // whether the step before was more than the damped one
  double residual = 0.0;  // of the iterate before

  // A power of two that brings residuals near 1, so that no product of theirs leaves the range of
  // the type they are summed in.
  template <typename accum_t>
  DEQ_HOST_DEVICE accum_t unit() const {
    constexpr int kLimit = sizeof(accum_t) == sizeof(double) ? 1000 : 120;
    if (known == 0 || !(residual > 0.0)) {
      return accum_t(1);
    }
    const int exponent = std::ilogb(residual);
    return static_cast<accum_t>(std::ldexp(1.0, exponent > kLimit    ? -kLimit
                                                : exponent < -kLimit ? kLimit
                                                                     : -exponent));
  }
};

// r + share u + momentum v is the combined residual, and
//     z + damping (1 - share) r + momentum (z' - z)
// the next iterate.
struct CellWeights {
  double share = 0.0;
  double momentum = 0.0;
};

// u and v whose angle has a sine of this square or less count as one direction: what is left of the
// second is made of rounding errors.
constexpr double kLeastAngle = 1e-6;

// Where this little of a damped step is left beside the momentum, the iterate would stand still: f
// is not as linear as was assumed, and o, once it is near zero, is no residual of anything.
constexpr double kLeastLength = 1.0 / 32;

// The weights of the least combined residual, which may be infinite or NaN. That of the step before
// is orthogonal to v, so that <v, r> is -<u, v>.
DEQ_HOST_DEVICE inline CellWeights least_residual(const double* sums, int known) {
  if (known == 0) {
    return {};
  }
  const double uu = sums[kSquareU];
  const double uv = known > 1 ? sums[kProductUV] : 0.0;
  const double vv = known > 1 ? sums[kSquareV] : 0.0;
  const double against = -sums[kProductUR];
  const double determinant = uu * vv - uv * uv;
  CellWeights weights = {against / uu, 0.0};
  if (determinant > kLeastAngle * uu * vv) {
    weights = {(against * vv - uv * uv) / determinant, uv * (uu - against) / determinant};
  }
  return weights;
}

enum class CellAction {
  kStop,
  kAdvance,
  kGoBack,  // the iterate before is evaluated again, and followed by its damped step
  kRepeat   // this iterate is
};

struct CellDecision {
  CellAction action;
  bool improved;  // this iterate is the one to keep
  CellWeights weights;
};

// The weights of the step from an evaluation, which becomes the one before.
DEQ_HOST_DEVICE inline CellWeights look_back(const double* sums, double residual, Crop* last) {
  CellWeights weights = least_residual(sums, last->known);
  const double length = std::fabs(1.0 - weights.share);
  const bool useful =
      length >= kLeastLength && length < HUGE_VAL && std::fabs(weights.momentum) < HUGE_VAL;
  // What is of no use is forgotten.
  const int known = useful ? last->known : 0;
  weights = useful ? weights : CellWeights();
  *last = {known < 2 ? known + 1 : 2, weights.share != 0.0 || weights.momentum != 0.0, residual};
  return weights;
}

// Judges an evaluation, and says where to go from it. A step that was more than the damped one and
// did not lower the residual is taken back. So is one that left the finite numbers, as long as
// there are steps.
DEQ_HOST_DEVICE inline CellDecision decide_cell_step(const double* sums, bool accelerate,
                                                     const Limits& limits, double* norms,
                                                     double* traced, int64_t* counters,
                                                     Crop* last) {
  const double residual = std::sqrt(sums[kResidualNorm]);
  const Verdict verdict = judge(residual, std::sqrt(sums[kValueNorm]), limits, norms, traced,
                                counters, {last->combined, last->residual});
  if (verdict.action == Action::kBacktrack) {
    *last = Crop();
    return {CellAction::kGoBack, false, {}};
  }
  if (verdict.action != Action::kAdvance) {
    return {CellAction::kStop, verdict.improved, {}};
  }
  return {CellAction::kAdvance, verdict.improved,
          accelerate ? look_back(sums, residual, last) : CellWeights()};
}

}  // namespace deq
