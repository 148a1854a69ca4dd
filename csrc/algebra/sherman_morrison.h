// The scalar part of a Sherman-Morrison append to H = scale I + sum_i u_i v_i^T.
// Source: docs/algebra.md, section 2.
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/macros.h"

namespace deq {

// A pair whose <v, y> is below this share of the terms it is made of would put noise into H.
constexpr double kDegenerateShare = 1e-8;

// 1 / <v, y> with v = H^T s, from dots alone: <v, y> = scale <s, y> + sum_i <u_i, s> <v_i, y>.
// Returns 0 where the pair must be refused: <v, y> vanishes against the terms it is made of, or
// something is not finite.
DEQ_HOST_DEVICE inline double sherman_morrison_scale(double s_dot_y, double s_sq, double y_sq,
                                                     double scale, int64_t rank,
                                                     const double* u_dot_s, const double* v_dot_y) {
  double denominator = scale * s_dot_y;
  double magnitude = std::fabs(scale) * std::sqrt(s_sq) * std::sqrt(y_sq);
  for (int64_t i = 0; i < rank; ++i) {
    const double term = u_dot_s[i] * v_dot_y[i];
    denominator += term;
    magnitude += std::fabs(term);
  }
  const bool usable = magnitude < HUGE_VAL && std::fabs(denominator) > kDegenerateShare * magnitude;
  const double inverse = usable ? 1.0 / denominator : 0.0;
  return std::fabs(inverse) < HUGE_VAL ? inverse : 0.0;
}

}  // namespace deq
