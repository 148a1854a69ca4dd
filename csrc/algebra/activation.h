// The activations of structured cells; deq_kernels/ops/cells/activations.py numbers the same.
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/macros.h"

namespace deq {

enum class Activation : int64_t { kIdentity, kRelu, kTanh, kSigmoid, kElu, kSoftplus, kGelu };

constexpr int64_t kActivations = 7;

// One element at a time. The CPU has vectors of them, in csrc/cpu/cells/activation.h. NaN stays NaN
// in each.
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

// The norm that a structured cell is judged by; deq_kernels/ops/cells/norms.py numbers the same. By
// rows, a sample's norm is the largest 2-norm of a row, and each row has to meet the tolerance for
// itself; where each row is a sample that is the 2-norm.
enum class NormKind : int64_t { kTwo, kMax, kRows };

constexpr int64_t kNormKinds = 3;

}  // namespace deq
