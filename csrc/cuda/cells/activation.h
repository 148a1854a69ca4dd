// The activations of structured cells, one element at a time. The CPU's counterpart:
// csrc/cpu/cells/activation.h. NaN stays NaN in each of them.
#pragma once

#include <cmath>

#include "algebra/activation.h"
#include "algebra/macros.h"

namespace deq {

template <typename accum_t>
DEQ_DEVICE accum_t activated(Activation activation, accum_t x) {
  const accum_t zero = 0;
  const accum_t one = 1;
  switch (activation) {
    case Activation::kRelu:
      return x < zero ? zero : x;
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kSigmoid: {
      const accum_t e = std::exp(-std::fabs(x));
      return (x < zero ? e : one) / (one + e);
    }
    case Activation::kElu:
      return x > zero ? x : std::expm1(x);
    case Activation::kSoftplus:
      return (x < zero ? zero : x) + std::log1p(std::exp(-std::fabs(x)));
    case Activation::kGelu:
      return static_cast<accum_t>(0.5) * x *
             std::erfc(x * static_cast<accum_t>(-0.70710678118654752440));
    default:
      return x;
  }
}

}  // namespace deq
