// The rank-sized recurrences against explicit dense matrices.
#include "algebra/product_form.h"

#include "test/check.h"

namespace {

using Vector = std::vector<double>;

double dot(const Vector& a, const Vector& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

// Random directions with Gram matrix and factors; `skipped` has its weight set to zero.
struct Example {
  static constexpr int64_t kDim = 7;
  static constexpr double kGamma = 0.6;
  int64_t count;
  std::vector<Vector> p;
  Vector gram;
  std::vector<deq::Factor> factors;

  Example(int64_t count_, double step, int64_t skipped = -1) : count(count_) {
    for (int64_t j = 0; j < count; ++j) {
      p.push_back(deq_test::random_vector(kDim, static_cast<unsigned>(10 + j)));
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < count; ++j) {
        gram.push_back(dot(p[i], p[j]));
      }
      factors.push_back({step, i == skipped ? 0.0 : 1.0 / dot(p[i], p[i])});
    }
  }

  deq::ProductForm form() const { return {gram.data(), factors.data(), count}; }

  Vector u(int64_t j) const {
    Vector out(kDim);
    for (int64_t i = 0; i < kDim; ++i) {
      out[i] = p[j + 1][i] + (factors[j].step - 1.0) * p[j][i];
    }
    return out;
  }

  // (I + u p^T / N) applied factor after factor to -gamma x, or the transpose.
  Vector product(const Vector& x, int64_t rank, bool transpose) const {
    Vector y = x;
    for (double& value : y) {
      value *= transpose ? 1.0 : -kGamma;
    }
    for (int64_t step = 0; step < rank; ++step) {
      const int64_t j = transpose ? rank - 1 - step : step;
      const Vector left = transpose ? p[j] : u(j);
      const Vector right = transpose ? u(j) : p[j];
      const double weight = factors[j].weight * dot(right, y);
      for (int64_t i = 0; i < kDim; ++i) {
        y[i] += weight * left[i];
      }
    }
    for (double& value : y) {
      value *= transpose ? -kGamma : 1.0;
    }
    return y;
  }

  Vector combine(const Vector& start, double scale, const Vector& coefficients) const {
    Vector y = start;
    for (int64_t i = 0; i < kDim; ++i) {
      y[i] *= scale;
      for (size_t j = 0; j < coefficients.size(); ++j) {
        y[i] += coefficients[j] * p[j][i];
      }
    }
    return y;
  }
};

void check_products(const Example& example) {
  const int64_t rank = example.count - 1;
  const Vector x = deq_test::random_vector(Example::kDim, 3);
  Vector q;
  for (int64_t j = 0; j < example.count; ++j) {
    q.push_back(dot(example.p[j], x));
  }
  Vector forward = q;
  for (double& value : forward) {
    value *= -Example::kGamma;
  }
  deq::matvec_coefficients(example.form(), rank, forward.data());
  const Vector h_x = example.combine(x, -Example::kGamma, forward);
  const Vector expected = example.product(x, rank, false);

  Vector backward = q;
  deq::rmatvec_coefficients(example.form(), rank, backward.data());
  backward[rank] = 0.0;
  Vector ht_x = example.combine(x, 1.0, backward);
  const Vector expected_t = example.product(x, rank, true);
  for (int64_t i = 0; i < Example::kDim; ++i) {
    CHECK_NEAR(h_x[i], expected[i], 1e-10);
    CHECK_NEAR(-Example::kGamma * ht_x[i], expected_t[i], 1e-10);
  }
}

TEST(products_equal_the_chain_of_factors) {
  for (int64_t count : {1, 2, 3, 6}) {
    for (double step : {1.0, 0.7, 1.5}) {
      check_products(Example(count, step));
    }
  }
}

TEST(a_skipped_factor_is_the_identity) { check_products(Example(5, 0.7, 2)); }

TEST(direction_solves_its_own_equation) {
  // p = -H_count r where H_count holds the factor that p itself enters.
  for (int64_t count : {1, 2, 5}) {
    for (double step : {1.0, 0.7}) {
      Example example(count, step);
      const Vector r = deq_test::random_vector(Example::kDim, 4);
      Vector q;
      for (int64_t j = 0; j < count; ++j) {
        q.push_back(-Example::kGamma * dot(example.p[j], r));
      }
      deq::Factor* newest = &example.factors[count - 1];
      newest->weight = 123.0;
      const double scale = deq::direction_coefficients(example.form(), count, newest, q.data());
      CHECK_NEAR(newest->weight, 1.0 / dot(example.p[count - 1], example.p[count - 1]), 1e-14);
      const Vector next = example.combine(r, -Example::kGamma * scale, q);
      example.p.push_back(next);
      example.factors.push_back({step, 0.0});
      example.count = count + 1;
      const Vector h_r = example.product(r, count, false);
      for (int64_t i = 0; i < Example::kDim; ++i) {
        CHECK_NEAR(next[i], -h_r[i], 1e-8);
      }
    }
  }
}

TEST(first_direction_is_the_damped_fixed_point_step) {
  const double scale = deq::direction_coefficients({nullptr, nullptr, 4}, 0, nullptr, nullptr);
  CHECK(scale == -1.0);
}

TEST(guard_skips_what_has_no_digits) {
  // pi + N = 0, pi + N not finite, N = 0: p = -w, weight 0.
  for (double q_value : {-2.0, static_cast<double>(NAN), HUGE_VAL}) {
    const double gram = 2.0;
    deq::Factor factor = {1.0, 5.0};
    double q = q_value;
    CHECK(deq::direction_coefficients({&gram, &factor, 1}, 1, &factor, &q) == -1.0);
    CHECK(factor.weight == 0.0);
    CHECK(q == 0.0);
  }
  const double zero = 0.0;
  deq::Factor factor = {1.0, 5.0};
  double q = 0.0;
  CHECK(deq::direction_coefficients({&zero, &factor, 1}, 1, &factor, &q) == -1.0);
  CHECK(factor.weight == 0.0);
}

}  // namespace
