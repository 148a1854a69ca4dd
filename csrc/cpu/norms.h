// The norms of one sample that the stopping rule judges by, from its sums.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "algebra/norms.h"

namespace deq {

// ||x||^2 of the x_i = item(i), i < dim.
template <typename Item>
SquaredNorm measure_with_unit(int64_t dim, const Item& item) {
  double largest = 0.0;
  for (int64_t i = 0; i < dim; ++i) {
    largest = std::fmax(largest, std::fabs(item(i)));
  }
  SquaredNorm norm = {0.0, unit_of(largest)};
  for (int64_t i = 0; i < dim; ++i) {
    const double x = item(i) / norm.unit;
    norm.sum += x * x;
  }
  return norm;
}

// Of f and z [dim], whose sums of squares are ||f - z||^2 and ||f||^2.
template <typename state_t>
StepNorms step_norms(const double* sums, const state_t* f, const state_t* z, int64_t dim) {
  StepNorms norms = {{sums[0]}, {sums[1]}};
  if constexpr (std::is_same_v<state_t, double>) {
    if (leaves_range(sums[0])) {
      norms.residual = measure_with_unit(dim, [&](int64_t i) { return f[i] - z[i]; });
    }
    if (leaves_range(sums[1])) {
      norms.f = measure_with_unit(dim, [&](int64_t i) { return f[i]; });
    }
  }
  return norms;
}

}  // namespace deq
