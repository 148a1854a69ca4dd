// The scale gamma of the initial inverse H_0 = -gamma I, estimated from the first step.
//
// Source: Barzilai and Borwein 1988, equation 5. Reference:
// deq_kernels/ops/broyden/initial_scale.py.
#pragma once

#include <cmath>

#include "algebra/macros.h"

namespace deq {

constexpr double kLeastGamma = 1e-3;
constexpr double kMostGamma = 1e3;
// A <y, y> below this share of the terms it is made of leaves no digits.
constexpr double kChangedShare = 1e-6;

// -<s, y> / <y, y>, which makes ||s + gamma y|| smallest, from s = a p and y = r - p / gamma, as
// p = gamma r_0: pi = <p, r>, norm_sq = <p, p>, residual_sq = <r, r>. The old gamma where the sums
// tell nothing.
DEQ_HOST_DEVICE inline double estimate_gamma(double gamma, double step, double pi, double norm_sq,
                                             double residual_sq) {
  const double before = norm_sq / (gamma * gamma);
  const double change_sq = residual_sq - 2.0 * pi / gamma + before;
  const double found = -(step * (pi - norm_sq / gamma)) / change_sq;
  // Written so that NaN fails a comparison.
  if (!(change_sq > kChangedShare * (residual_sq + before) && found > 0.0 && found < HUGE_VAL)) {
    return gamma;
  }
  return found < kLeastGamma ? kLeastGamma : (found > kMostGamma ? kMostGamma : found);
}

}  // namespace deq
