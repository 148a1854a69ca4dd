// Norms whose squares may leave the range of a double, and when to measure them again.
//
// Squares of entries below 1e-162 vanish, and those above 1e+154 overflow: only float64 states have
// such entries. Their norms are taken again with a unit, by whoever concludes the sample.
#pragma once

#include <cmath>

#include "algebra/macros.h"

namespace deq {

// ||x||^2 as the sum of squares of x / unit. The unit is a power of two, and 1 in the ordinary
// regime, where multiplying with it changes no bit.
struct SquaredNorm {
  double sum;
  double unit = 1.0;

  DEQ_HOST_DEVICE double root() const { return unit * std::sqrt(sum); }
};

// Of f(z) - z and of f(z).
struct StepNorms {
  SquaredNorm residual;
  SquaredNorm f;
};

// Below it a sum of squares may lack some that vanished; at it, all those that vanished together
// are less than its rounding.
constexpr double kLeastSum = 0x1p-900;

// Written so that NaN leaves the range.
DEQ_HOST_DEVICE inline bool leaves_range(double sum) {
  return !(sum >= kLeastSum && sum < HUGE_VAL);
}

// The unit in which the largest magnitude lies in [1, 2); 1 for zero and for what is not finite.
DEQ_HOST_DEVICE inline double unit_of(double largest) {
  return largest > 0.0 && largest < HUGE_VAL ? std::ldexp(1.0, std::ilogb(largest)) : 1.0;
}

}  // namespace deq
