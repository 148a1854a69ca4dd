// The steps of a structured cell on plain vectors of float64: what kernels are held against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "algebra/crop.h"

namespace deq_test {

// Conjugate residuals with optimal trial vectors from three of them, and the damped step where that
// is not wanted or not known.
struct PlainSteps {
  using Vector = std::vector<double>;

  bool accelerate;
  double damping;
  std::vector<Vector> combined = {};  // residuals, the newest first
  Vector last_z = {};
  double last_norm = 0.0;
  bool looked_back = false;
  int64_t taken_back = 0;

  static double dot(const Vector& x, const Vector& y) {
    double sum = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
      sum += x[i] * y[i];
    }
    return sum;
  }

  static Vector difference(const Vector& x, const Vector& y) {
    Vector result = x;
    for (size_t i = 0; i < x.size(); ++i) {
      result[i] -= y[i];
    }
    return result;
  }

  Vector from(const Vector& z, const Vector& f, double norm) {
    if (looked_back && norm > last_norm) {
      ++taken_back;
      looked_back = false;
      combined.clear();
      return last_z;
    }
    const Vector r = difference(f, z);
    const Vector none(z.size(), 0.0);
    const Vector u = combined.size() > 0 ? difference(combined[0], r) : none;
    const Vector v = combined.size() > 1 ? difference(combined[1], combined[0]) : none;
    // The normal equations of the least r + a u + b v.
    const double uu = dot(u, u);
    const double uv = dot(u, v);
    const double vv = dot(v, v);
    const double determinant = uu * vv - uv * uv;
    double a = uu > 0.0 ? -dot(u, r) / uu : 0.0;
    double b = 0.0;
    if (determinant > deq::kLeastAngle * uu * vv) {
      a = (uv * dot(v, r) - vv * dot(u, r)) / determinant;
      b = (uv * dot(u, r) - uu * dot(v, r)) / determinant;
    }
    // What would leave the iterate where it is, or is not finite, is forgotten.
    if (!(std::fabs(1.0 - a) >= deq::kLeastLength)) {
      a = b = 0.0;
      combined.clear();
    }
    Vector next = z;
    Vector o = r;
    for (size_t i = 0; i < z.size(); ++i) {
      next[i] += damping * (1.0 - a) * r[i] + (b == 0.0 ? 0.0 : b * (last_z[i] - z[i]));
      o[i] += a * u[i] + b * v[i];
    }
    if (accelerate) {
      combined.insert(combined.begin(), o);
      combined.resize(std::min<size_t>(2, combined.size()));
      last_z = z;
      last_norm = norm;
      looked_back = a != 0.0 || b != 0.0;
    }
    return next;
  }
};

}  // namespace deq_test
