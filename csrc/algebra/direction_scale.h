// The power of two that directions are stored with, which keeps their dots in range.
//
// Dots are sums of products of two directions: those of residuals near 1e-30 vanish in float32, and
// those near 1e+30 overflow. The factors (I + u p^T / N) do not depend on the scale. Reference:
// deq_kernels/ops/direction_scale.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/macros.h"
#include "algebra/types.h"

namespace deq {

// Root mean squares of a residual that need no scaling, and the largest exponent of a scale: it
// leaves a factor of 2^30 for step lengths and gamma.
struct ScaleRange {
  double least;
  double most;
  int exponent;
};

template <typename accum_t>
constexpr int largest_exponent() {
  return sizeof(accum_t) == sizeof(float) ? 96 : 900;
}

template <typename history_t, typename accum_t>
struct ScaleRangeOf {
  static constexpr ScaleRange value = {1e-8, 1e8, largest_exponent<accum_t>()};
};
// float16 has its full digits only between 6e-5 and 65504, and residuals change by orders of
// magnitude after the scale was chosen.
template <typename accum_t>
struct ScaleRangeOf<float16, accum_t> {
  static constexpr ScaleRange value = {0x1p-7, 0x1p7, largest_exponent<accum_t>()};
};

// The exponent of the scale of a history that begins with a residual of this norm: 0 in
// range; otherwise what brings the root mean square into [1/2, 1), as far as the exponent goes.
DEQ_HOST_DEVICE inline int direction_exponent(double residual, int64_t dim,
                                              const ScaleRange& range) {
  const double mean = residual / std::sqrt(static_cast<double>(dim > 0 ? dim : 1));
  if (mean >= range.least && mean <= range.most) {
    return 0;
  }
  int exponent = 0;
  std::frexp(mean, &exponent);
  exponent = -exponent;
  return exponent < -range.exponent ? -range.exponent
                                    : (exponent > range.exponent ? range.exponent : exponent);
}

}  // namespace deq
