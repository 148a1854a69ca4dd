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
  mutable Vector table;

  Example(int64_t count_, double step, int64_t skipped = -1) : count(count_) {
    for (int64_t j = 0; j < count; ++j) {
      p.push_back(deq_test::random_vector(kDim, static_cast<unsigned>(10 + j)));
    }
    table.resize(static_cast<size_t>(deq::ProductForm::table_size(count)));
    for (int64_t j = 0; j < count; ++j) {
      Vector column;
      for (int64_t i = 0; i <= j; ++i) {
        column.push_back(dot(p[i], p[j]));
      }
      form().set_newest(deq::OneLane(), j, column.data());
      form().step(j) = step;
      form().weight(j) = j == skipped ? 0.0 : 1.0 / column[j];
    }
  }

  deq::ProductForm form() const { return {table.data(), count}; }

  Vector u(int64_t j) const {
    Vector out(kDim);
    for (int64_t i = 0; i < kDim; ++i) {
      out[i] = p[j + 1][i] + (form().step(j) - 1.0) * p[j][i];
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
      const double weight = form().weight(j) * dot(right, y);
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
  deq::matvec_coefficients(deq::OneLane(), example.form(), rank, forward.data());
  const Vector h_x = example.combine(x, -Example::kGamma, forward);
  const Vector expected = example.product(x, rank, false);

  Vector backward = q;
  deq::rmatvec_coefficients(deq::OneLane(), example.form(), rank, backward.data());
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
      const Example before(count, step);
      const Vector r = deq_test::random_vector(Example::kDim, 4);
      Vector q;
      for (int64_t j = 0; j < count; ++j) {
        q.push_back(-Example::kGamma * dot(before.p[j], r));
      }
      before.form().weight(count - 1) = 123.0;
      const double scale =
          deq::direction_coefficients(deq::OneLane(), before.form(), count, q.data());
      const Vector& newest = before.p[count - 1];
      CHECK_NEAR(before.form().weight(count - 1), 1.0 / dot(newest, newest), 1e-14);
      Example after(count + 1, step);
      after.p[count] = before.combine(r, -Example::kGamma * scale, q);
      const Vector h_r = after.product(r, count, false);
      for (int64_t i = 0; i < Example::kDim; ++i) {
        CHECK_NEAR(after.p[count][i], -h_r[i], 1e-8);
      }
    }
  }
}

TEST(first_direction_is_the_damped_fixed_point_step) {
  CHECK(deq::direction_coefficients(deq::OneLane(), {nullptr, 4}, 0, nullptr) == -1.0);
}

TEST(guard_skips_what_has_no_digits) {
  // pi + N = 0, pi + N not finite, N = 0: p = -w, weight 0.
  for (double q_value : {-2.0, static_cast<double>(NAN), HUGE_VAL}) {
    double table[] = {2.0, 1.0, 5.0};
    double q = q_value;
    CHECK(deq::direction_coefficients(deq::OneLane(), {table, 1}, 1, &q) == -1.0);
    CHECK(table[2] == 0.0);
    CHECK(q == 0.0);
  }
  double table[] = {0.0, 1.0, 5.0};
  double q = 0.0;
  CHECK(deq::direction_coefficients(deq::OneLane(), {table, 1}, 1, &q) == -1.0);
  CHECK(table[2] == 0.0);
}

}  // namespace
