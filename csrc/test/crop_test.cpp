// The weights of conjugate residuals against least squares over explicit vectors.
#include "algebra/crop.h"

#include <array>
#include <cmath>

#include "test/check.h"

namespace {

using deq::CellWeights;
using deq::least_residual;
using Vector = std::array<double, 4>;

double dot(const Vector& x, const Vector& y) {
  double sum = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    sum += x[i] * y[i];
  }
  return sum;
}

// r, u and v of a step whose o = r + u is orthogonal to v, as that of the step before is.
struct Step {
  Vector r;
  Vector u;
  Vector v;

  Step(const Vector& residual, const Vector& combined, const Vector& direction)
      : r(residual), u(), v(direction) {
    const double along = dot(combined, v) / dot(v, v);
    for (size_t i = 0; i < u.size(); ++i) {
      u[i] = combined[i] - along * v[i] - r[i];
    }
  }

  CellWeights weights(int known) const {
    const double sums[deq::kCellSums] = {0.0, 0.0, dot(u, u), dot(u, v), dot(v, v), dot(u, r)};
    return least_residual(sums, known);
  }

  Vector combined(const CellWeights& weights) const {
    Vector out = r;
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] += weights.share * u[i] + weights.momentum * v[i];
    }
    return out;
  }
};

const Step kStep({1.0, -2.0, 0.5, 3.0}, {2.0, 1.0, -1.0, 0.5}, {0.5, 1.0, 4.0, -1.0});

TEST(crop_combines_to_the_least_residual) {
  const Vector both = kStep.combined(kStep.weights(2));
  CHECK_NEAR(dot(both, kStep.u), 0.0, 1e-12);
  CHECK_NEAR(dot(both, kStep.v), 0.0, 1e-12);
  const CellWeights one = kStep.weights(1);
  CHECK(one.momentum == 0.0);
  CHECK_NEAR(dot(kStep.combined(one), kStep.u), 0.0, 1e-12);
  CHECK(kStep.weights(0).share == 0.0 && kStep.weights(0).momentum == 0.0);
}

TEST(crop_takes_nearly_parallel_directions_for_one) {
  Step step = kStep;
  step.v = step.u;
  step.v[0] += 1e-5;
  CHECK(step.weights(2).momentum == 0.0);
  CHECK(step.weights(2).share == step.weights(1).share);
}

TEST(crop_forgets_what_is_of_no_use) {
  struct Case {
    double grown;  // r over o, in one dimension
    int known;
  };
  // The share of o is r / (r - o): near 1 where o is near zero beside r, 3/2 at r = 3 o.
  for (const Case& example :
       {Case{0.5, 2}, Case{-0.9, 2}, Case{3.0, 2}, Case{-30.0, 2}, Case{-32.0, 1}, Case{40.0, 1},
        Case{1.0, 1}, Case{static_cast<double>(NAN), 1}, Case{HUGE_VAL, 1}}) {
    const double u = 1.0 - example.grown;
    const double sums[deq::kCellSums] = {1.0, 1.0, u * u, 0.0, 0.0, u * example.grown};
    deq::Crop last = {2, true, 1.0};
    const CellWeights weights = deq::look_back(sums, 0.25, &last);
    CHECK(last.known == example.known);
    CHECK(last.combined == (example.known == 2) && last.residual == 0.25);
    CHECK(last.combined == (weights.share != 0.0));
    CHECK(weights.momentum == 0.0);
  }
}

TEST(crop_unit_is_a_power_of_two_near_the_residual) {
  deq::Crop crop;
  CHECK(crop.unit<float>() == 1.0f);
  crop = {1, false, 3e-9};
  const double scaled = 3e-9 * crop.unit<float>();
  CHECK(scaled >= 1.0 && scaled < 2.0);
  CHECK(std::ilogb(crop.unit<double>()) == 29);
  crop.residual = HUGE_VAL;
  CHECK(crop.unit<float>() > 0.0f);
}

}  // namespace
