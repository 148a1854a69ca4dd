// A derivative-free, nonmonotone line search along the Broyden direction.
//
// Source: Li and Fukushima 2000; La Cruz, Martinez and Raydan 2006, section 2 (DF-SANE). Reference:
// deq_kernels/ops/broyden/line_search.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/macros.h"

namespace deq {

// The share of the squared step length by which a residual must fall.
constexpr double kDecrease = 1e-4;
// What a step length is multiplied with, at least and at most.
constexpr double kShortest = 0.1;
constexpr double kLongest = 0.5;

// The largest ||r(z + a p)|| accepted, from base = ||r(z)|| and the evaluations before: the
// allowance for growth is summable, so that residuals stay bounded.
DEQ_HOST_DEVICE inline double accepted_residual(double base, double step, int64_t evaluations) {
  const double n = 1.0 + static_cast<double>(evaluations);
  return (1.0 + 1.0 / (n * n) - kDecrease * (step * step)) * base;
}

// The next step length: the minimum of the parabola through ||r(z)||^2 and ||r(z + a p)||^2 whose
// slope at 0 is -2 ||r(z)||^2, the slope along Newton's direction, within bounds.
DEQ_HOST_DEVICE inline double shorter_step(double base, double step, double residual) {
  const double ratio = residual / base;
  const double growth = ratio * ratio;
  const double minimum = growth < HUGE_VAL ? step * step / (growth + 2.0 * step - 1.0) : 0.0;
  const double bounded = minimum < kLongest * step ? minimum : kLongest * step;
  return bounded > kShortest * step ? bounded : kShortest * step;
}

}  // namespace deq
