// The activations of structured cells in float64, as the standard library has them.
#pragma once

#include <cmath>

#include "algebra/activation.h"

namespace deq_test {

inline double activation_value(deq::Activation activation, double x) {
  switch (activation) {
    case deq::Activation::kIdentity:
      return x;
    case deq::Activation::kRelu:
      return x > 0.0 ? x : 0.0;
    case deq::Activation::kTanh:
      return std::tanh(x);
    case deq::Activation::kSigmoid:
      return 1.0 / (1.0 + std::exp(-x));
    case deq::Activation::kElu:
      return x > 0.0 ? x : std::expm1(x);
    case deq::Activation::kSoftplus:
      return x > 0.0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
    default:  // gelu
      return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
  }
}

}  // namespace deq_test
