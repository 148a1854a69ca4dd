// Activations of whole vectors.
//
// Only tiles.cpp includes this; like simd.h, it lies in the namespace of the instruction set.
// NaN stays NaN in each of them: of a comparison with NaN the second value is taken.
#pragma once

#include "algebra/activation.h"
#include "cpu/simd.h"

namespace deq {
namespace DEQ_ISA {

template <typename accum_t>
struct FloatFormat;

template <>
struct FloatFormat<float> {
  using Int = int32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr int kExponentBias = 127;
  static constexpr float kRound = 0x1.8p23f;  // added, it leaves an integer in the low bits
  static constexpr float kLog2e = 0x1.715476p+0f;
  static constexpr float kLn2High = 0x1.63p-1f;  // few bits, so that multiples of it are exact
  static constexpr float kLn2Low = -2.12194440e-4f;
  static constexpr float kLowest = -87.0f;  // e to this is still a normal number
  static constexpr int kExpTerms = 8;
  static constexpr int kLogTerms = 9;
};

template <>
struct FloatFormat<double> {
  using Int = int64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr int kExponentBias = 1023;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLog2e = 0x1.71547652b82fep+0;
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLowest = -708.0;
  static constexpr int kExpTerms = 14;
  static constexpr int kLogTerms = 18;
};

// The integers as wide as the elements of a vector.
template <typename accum_t>
using IntVector = typename VectorOf<typename FloatFormat<accum_t>::Int, DEQ_VECTOR_BYTES>::type;

template <typename accum_t>
inline IntVector<accum_t> sign_bits() {
  using Int = typename FloatFormat<accum_t>::Int;
  return IntVector<accum_t>{} + static_cast<Int>(Int(1) << (sizeof(Int) * 8 - 1));
}

template <typename accum_t>
inline IntVector<accum_t> magnitude_bits(Vector<accum_t> x) {
  return load_bits<IntVector<accum_t>>(&x) & ~sign_bits<accum_t>();
}

// -|x|
template <typename accum_t>
inline Vector<accum_t> negative_magnitude(Vector<accum_t> x) {
  const IntVector<accum_t> bits = load_bits<IntVector<accum_t>>(&x) | sign_bits<accum_t>();
  return load_bits<Vector<accum_t>>(&bits);
}

template <typename accum_t>
inline Vector<accum_t> with_sign_of(Vector<accum_t> magnitude, Vector<accum_t> x) {
  const IntVector<accum_t> bits = load_bits<IntVector<accum_t>>(&magnitude) |
                                  (load_bits<IntVector<accum_t>>(&x) & sign_bits<accum_t>());
  return load_bits<Vector<accum_t>>(&bits);
}

// e^y = 2^k (1 + expm1(r)), with |r| <= log(2) / 2
template <typename accum_t>
struct Exponential {
  Vector<accum_t> power;  // 2^k
  Vector<accum_t> rest;   // expm1(r)

  Vector<accum_t> exp() const { return power + power * rest; }
  Vector<accum_t> expm1() const { return power * rest + (power - accum_t(1)); }
};

// For y <= 0. What lies below kLowest counts as kLowest.
template <typename accum_t>
inline Exponential<accum_t> exponential(Vector<accum_t> y) {
  using Format = FloatFormat<accum_t>;
  using V = Vector<accum_t>;
  const V lowest = V{} + Format::kLowest;
  y = y < lowest ? lowest : y;
  const V shifted = y * Format::kLog2e + Format::kRound;
  const V k = shifted - Format::kRound;
  const V r = (y - k * Format::kLn2High) - k * Format::kLn2Low;
  const IntVector<accum_t> bits = (load_bits<IntVector<accum_t>>(&shifted) + Format::kExponentBias)
                                  << Format::kMantissaBits;
  double factorial = 1.0;
  for (int i = 2; i <= Format::kExpTerms; ++i) {
    factorial *= i;
  }
  V sum = V{} + static_cast<accum_t>(1.0 / factorial);
#pragma GCC unroll 16
  for (int i = Format::kExpTerms; i > 2; --i) {
    factorial /= i;
    sum = sum * r + static_cast<accum_t>(1.0 / factorial);
  }
  return {load_bits<V>(&bits), r + r * r * sum};
}

// log(1 + x) = 2 artanh(s) with s = x / (2 + x), for x in [0, 1]
template <typename accum_t>
inline Vector<accum_t> log1p(Vector<accum_t> x) {
  const Vector<accum_t> s = x / (accum_t(2) + x);
  const Vector<accum_t> square = s * s;
  Vector<accum_t> sum = {};
#pragma GCC unroll 20
  for (int i = FloatFormat<accum_t>::kLogTerms - 1; i > 0; --i) {
    sum = (sum + static_cast<accum_t>(1.0 / (2 * i + 1))) * square;
  }
  return accum_t(2) * (s + s * sum);
}

// 1 - erf(y) for y >= 0, to full precision relative to 1. Rational approximations of W. J. Cody,
// Mathematics of Computation 23 (1969); from 6 on the result is 0.
template <typename accum_t>
inline Vector<accum_t> erfc(Vector<accum_t> y) {
  using V = Vector<accum_t>;
  constexpr double a[] = {3.16112374387056560e00, 1.13864154151050156e02, 3.77485237685302021e02,
                          3.20937758913846947e03, 1.85777706184603153e-1};
  constexpr double b[] = {2.36012909523441209e01, 2.44024637934444173e02, 1.28261652607737228e03,
                          2.84423683343917062e03};
  constexpr double c[] = {5.64188496988670089e-1, 8.88314979438837594e00, 6.61191906371416295e01,
                          2.98635138197400131e02, 8.81952221241769090e02, 1.71204761263407058e03,
                          2.05107837782607147e03, 1.23033935479799725e03, 2.15311535474403846e-8};
  constexpr double d[] = {1.57449261107098347e01, 1.17693950891312499e02, 5.37181101862009858e02,
                          1.62138957456669019e03, 3.29079923573345963e03, 4.36261909014324716e03,
                          3.43936767414372164e03, 1.23033935480374942e03};
  const V end = V{} + accum_t(6);
  const V near = V{} + accum_t(0.46875);
  const auto beyond = y > end;
  y = beyond ? end : y;
  const V square = y * y;
  V above = square * static_cast<accum_t>(a[4]);
  V below = square;
#pragma GCC unroll 8
  for (int i = 0; i < 3; ++i) {
    above = (above + static_cast<accum_t>(a[i])) * square;
    below = (below + static_cast<accum_t>(b[i])) * square;
  }
  const V erf = y * (above + static_cast<accum_t>(a[3])) / (below + static_cast<accum_t>(b[3]));
  above = y * static_cast<accum_t>(c[8]);
  below = y;
#pragma GCC unroll 8
  for (int i = 0; i < 7; ++i) {
    above = (above + static_cast<accum_t>(c[i])) * y;
    below = (below + static_cast<accum_t>(d[i])) * y;
  }
  const V ratio = (above + static_cast<accum_t>(c[7])) / (below + static_cast<accum_t>(d[7]));
  const V far = exponential<accum_t>(-square).exp() * ratio;
  const V zero = {};
  return beyond ? zero : y < near ? accum_t(1) - erf : far;
}

template <Activation activation, typename accum_t>
inline Vector<accum_t> activate(Vector<accum_t> x) {
  using V = Vector<accum_t>;
  const V zero = {};
  switch (activation) {
    case Activation::kIdentity:
      return x;
    case Activation::kRelu:
      return x < zero ? zero : x;
    case Activation::kTanh: {
      // From expm1, so that it is as good near 0 as elsewhere.
      const V e = exponential<accum_t>(accum_t(2) * negative_magnitude<accum_t>(x)).expm1();
      return with_sign_of<accum_t>(-e / (accum_t(2) + e), x);
    }
    case Activation::kSigmoid: {
      const V e = exponential<accum_t>(negative_magnitude<accum_t>(x)).exp();
      const V upper = accum_t(1) / (accum_t(1) + e);
      return x < zero ? e * upper : upper;
    }
    case Activation::kElu:
      return x > zero ? x : exponential<accum_t>(negative_magnitude<accum_t>(x)).expm1();
    case Activation::kSoftplus: {
      const V e = exponential<accum_t>(negative_magnitude<accum_t>(x)).exp();
      return (x < zero ? zero : x) + log1p<accum_t>(e);
    }
    case Activation::kGelu: {
      const V tail =
          erfc<accum_t>(-negative_magnitude<accum_t>(x) * accum_t(0.70710678118654752440));
      return accum_t(0.5) * x * (x < zero ? tail : accum_t(2) - tail);
    }
  }
}

}  // namespace DEQ_ISA
}  // namespace deq
