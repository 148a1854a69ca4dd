// The weights of an Anderson step against a dense least-squares problem, and its guards.
#include "algebra/anderson.h"

#include <algorithm>

#include "test/check.h"

namespace {

using Vector = std::vector<double>;

constexpr int64_t kDim = 9;

double dot(const Vector& a, const Vector& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

Vector difference(const Vector& a, const Vector& b) {
  Vector out(a.size());
  for (size_t i = 0; i < a.size(); ++i) {
    out[i] = a[i] - b[i];
  }
  return out;
}

// Solves a dense system by elimination with row pivoting.
Vector solve_dense(std::vector<Vector> matrix, Vector right) {
  const size_t size = right.size();
  for (size_t i = 0; i < size; ++i) {
    size_t best = i;
    for (size_t row = i; row < size; ++row) {
      best = std::fabs(matrix[row][i]) > std::fabs(matrix[best][i]) ? row : best;
    }
    std::swap(matrix[i], matrix[best]);
    std::swap(right[i], right[best]);
    for (size_t row = i + 1; row < size; ++row) {
      const double factor = matrix[row][i] / matrix[i][i];
      for (size_t column = i; column < size; ++column) {
        matrix[row][column] -= factor * matrix[i][column];
      }
      right[row] -= factor * right[i];
    }
  }
  for (size_t i = size; i-- > 0;) {
    for (size_t column = i + 1; column < size; ++column) {
      right[i] -= matrix[i][column] * right[column];
    }
    right[i] /= matrix[i][i];
  }
  return right;
}

// a, oldest evaluation first: min ||sum a_i r_i||^2 + lambda ||a||^2 with sum a_i = 1, as the
// bordered system of the residuals' own Gram matrix.
Vector bordered_weights(const std::vector<Vector>& residuals, double lambda) {
  const size_t size = residuals.size();
  std::vector<Vector> matrix(size + 1, Vector(size + 1, 1.0));
  matrix[size][size] = 0.0;
  for (size_t i = 0; i < size; ++i) {
    for (size_t j = 0; j < size; ++j) {
      matrix[i][j] = dot(residuals[i], residuals[j]) + (i == j ? lambda : 0.0);
    }
  }
  Vector right(size + 1, 0.0);
  right[size] = 1.0;
  Vector weights = solve_dense(matrix, right);
  weights.pop_back();
  return weights;
}

// The newest `count` changes of a longer sequence of residuals, in their ring.
struct Example {
  std::vector<Vector> residuals;  // of the window, oldest first
  deq::ChangeRing ring;
  Vector memory;
  Vector b;

  Example(int64_t capacity, const std::vector<Vector>& all)
      : ring(capacity, static_cast<int64_t>(all.size()) - 1),
        memory(static_cast<size_t>(deq::AndersonTable::table_size(capacity)), NAN),
        b(static_cast<size_t>(capacity), NAN) {
    residuals.assign(all.end() - ring.count - 1, all.end());
    for (int64_t i = 0; i < ring.count; ++i) {
      b[ring.slot(i)] = dot(change(i), residuals.back());
      for (int64_t j = 0; j < ring.count; ++j) {
        table().gram(ring.slot(i), ring.slot(j)) = dot(change(i), change(j));
      }
    }
  }

  deq::AndersonTable table() { return {memory.data(), ring.capacity}; }
  Vector change(int64_t age) const {
    const size_t newer = residuals.size() - 1 - static_cast<size_t>(age);
    return difference(residuals[newer], residuals[newer - 1]);
  }
  bool weigh(double lambda, double share = 1e-15) {
    return deq::mixing_weights(deq::OneLane(), table(), ring, lambda, share, b.data());
  }
};

std::vector<Vector> random_residuals(int64_t count) {
  std::vector<Vector> all;
  for (int64_t i = 0; i < count; ++i) {
    all.push_back(deq_test::random_vector(kDim, static_cast<unsigned>(20 + i)));
  }
  return all;
}

TEST(the_ring_overwrites_the_oldest_change) {
  const deq::ChangeRing empty(3, 0);
  CHECK(empty.count == 0);
  CHECK(empty.next == 0);
  const deq::ChangeRing some(3, 2);
  CHECK(some.count == 2);
  CHECK(some.slot(0) == 1);
  CHECK(some.slot(1) == 0);
  CHECK(some.next == 2);
  const deq::ChangeRing full(3, 7);
  CHECK(full.count == 3);
  CHECK(full.newest == 0);
  CHECK(full.slot(1) == 2);
  CHECK(full.slot(2) == 1);
  CHECK(full.next == full.slot(2));
  const deq::ChangeRing none(0, 5);
  CHECK(none.count == 0);
}

TEST(weights_equal_the_bordered_system) {
  for (int64_t seen : {1, 2, 3, 4, 5, 7}) {
    for (double lambda : {0.0, 1e-3, 1.0, 50.0}) {
      Example example(4, random_residuals(seen + 1));
      CHECK(example.weigh(lambda));
      const Vector a = bordered_weights(example.residuals, lambda);
      // gamma of a change is the weight of all evaluations before it.
      double before = 0.0;
      for (size_t i = 0; i + 1 < a.size(); ++i) {
        before += a[i];
        const int64_t age = static_cast<int64_t>(a.size() - 2 - i);
        CHECK_NEAR(example.b[example.ring.slot(age)], before, 1e-9);
      }
    }
  }
}

TEST(a_change_that_depends_on_newer_ones_gets_no_weight) {
  std::vector<Vector> all = random_residuals(4);
  // The two oldest changes are multiples of the newest.
  for (size_t i = 0; i < static_cast<size_t>(kDim); ++i) {
    const double step = all[3][i] - all[2][i];
    all[1][i] = all[2][i] - 0.5 * step;
    all[0][i] = all[1][i] - 3.0 * step;
  }
  Example example(3, all);
  CHECK(example.weigh(0.0, 1e-12));
  const Vector newest = example.change(0);
  CHECK_NEAR(example.b[example.ring.slot(0)], dot(newest, all[3]) / dot(newest, newest), 1e-12);
  CHECK(example.b[example.ring.slot(1)] == 0.0);
  CHECK(example.b[example.ring.slot(2)] == 0.0);
}

TEST(dependence_is_a_matter_of_the_share) {
  std::vector<Vector> all = random_residuals(3);
  const Vector off = deq_test::random_vector(kDim, 6);
  // The older change is the newest but for 1e-5 of something else: a share of about 1e-10.
  for (size_t i = 0; i < static_cast<size_t>(kDim); ++i) {
    all[0][i] = all[1][i] - (all[2][i] - all[1][i]) + 1e-5 * off[i];
  }
  Example coarse(2, all);
  CHECK(coarse.weigh(0.0, 1e-8));
  CHECK(coarse.b[coarse.ring.slot(1)] == 0.0);
  Example fine(2, all);
  CHECK(fine.weigh(0.0, 1e-12));
  CHECK(std::fabs(fine.b[fine.ring.slot(1)]) > 100.0);
}

TEST(a_change_of_nothing_leaves_the_damped_step) {
  for (double lambda : {0.0, 1.0}) {
    const Vector r = deq_test::random_vector(kDim, 5);
    Example example(3, {r, r, r});
    CHECK(!example.weigh(lambda));
    CHECK(example.b[0] == 0.0);
    CHECK(example.b[1] == 0.0);
  }
}

TEST(a_change_that_is_not_finite_gets_no_weight) {
  for (double bad : {static_cast<double>(NAN), HUGE_VAL}) {
    for (int64_t slot : {0, 1, 2}) {
      Example example(3, random_residuals(4));
      for (int64_t j = 0; j < 3; ++j) {
        example.table().gram(slot, j) = example.table().gram(j, slot) = bad;
      }
      example.b[slot] = bad;
      CHECK(example.weigh(1e-3));
      CHECK(example.b[slot] == 0.0);
      for (double weight : example.b) {
        CHECK(std::isfinite(weight));
      }
    }
  }
}

TEST(weights_of_no_use_leave_the_damped_step) {
  Example example(2, random_residuals(2));
  example.b[0] = 1e40;
  CHECK(!example.weigh(0.0));
  Example not_finite(2, random_residuals(2));
  not_finite.b[0] = NAN;
  CHECK(!not_finite.weigh(0.0));
}

TEST(the_share_follows_the_coarser_of_dots_and_storage) {
  CHECK((deq::dependent_share<double, double>() == 0x1p-52));
  CHECK((deq::dependent_share<float, double>() == 0x1p-46));
  CHECK((deq::dependent_share<float, float>() == 0x1p-23));
  CHECK((deq::dependent_share<deq::bfloat16, float>() == 0x1p-14));
}

struct Conclusion {
  double record[deq::kNormColumns + 10] = {};
  int64_t counters[deq::kCounterColumns] = {};
  deq::AndersonOptions options = {1.0, 1e-6, 1e-15, {1e-8, 1e8, 96}, {0.0, 0.0, 10, 0, 100.0, 1}};
  deq::AndersonDecision decision = {};

  void conclude(Example& example, double residual_sq) {
    Vector column;
    for (int64_t j = 0; j < example.ring.count; ++j) {
      column.push_back(example.table().gram(j, example.ring.newest));
    }
    const deq::StepNorms norms = {{residual_sq}, {1.0}};
    deq::conclude_anderson(deq::OneLane(), options, example.table(), kDim, norms, example.b.data(),
                           column.data(), record, counters, &decision);
  }
};

TEST(a_step_scales_its_ridge_by_the_residual) {
  Example example(3, random_residuals(3));
  Example expected = example;
  const double residual_sq = dot(example.residuals.back(), example.residuals.back());
  CHECK(expected.weigh(1e-6 * residual_sq));
  Conclusion conclusion;
  conclusion.counters[deq::kCount] = 2;
  conclusion.conclude(example, residual_sq);
  CHECK(conclusion.decision.advance);
  CHECK(conclusion.decision.keep);
  CHECK(!conclusion.decision.restore);
  CHECK(conclusion.decision.count == 2);
  CHECK(conclusion.counters[deq::kCount] == 3);
  for (int64_t j = 0; j < 2; ++j) {
    CHECK(example.b[j] == -expected.b[j]);
  }
}

TEST(a_window_takes_its_scale_from_the_residual_it_begins_with) {
  struct Case {
    double size;
    double scale;
  };
  for (const Case& c : {Case{1.0, 1.0}, Case{0x1p-20, 1.0}, Case{0x1p-40, 0x1p39},
                        Case{0x1p60, 0x1p-61}, Case{0x1p-120, 0x1p96}}) {
    Example example(3, random_residuals(1));
    Conclusion conclusion;
    conclusion.counters[deq::kSteps] = 2;
    conclusion.record[deq::kFirstResidual] = conclusion.record[deq::kBestResidual] = 1e40;
    conclusion.record[deq::kDirectionScale] = 8.0;  // of a window that was given up
    conclusion.conclude(example, kDim * c.size * c.size);
    CHECK(conclusion.decision.advance);
    CHECK(conclusion.record[deq::kDirectionScale] == c.scale);
  }
}

TEST(a_scale_of_the_changes_changes_no_weight) {
  Example plain(3, random_residuals(3));
  const double residual_sq = dot(plain.residuals.back(), plain.residuals.back());
  Example scaled = plain;
  for (int64_t i = 0; i < 2; ++i) {
    scaled.b[i] *= 0x1p60;
    for (int64_t j = 0; j < 2; ++j) {
      scaled.table().gram(i, j) *= 0x1p60;
    }
  }
  for (Example* example : {&plain, &scaled}) {
    Conclusion conclusion;
    conclusion.counters[deq::kCount] = conclusion.counters[deq::kSteps] = 2;
    conclusion.record[deq::kFirstResidual] = conclusion.record[deq::kBestResidual] = 1e3;
    conclusion.record[deq::kDirectionScale] = example == &plain ? 1.0 : 0x1p30;
    conclusion.conclude(*example, residual_sq);
    CHECK(conclusion.decision.count == 2);
  }
  CHECK(scaled.b[0] == plain.b[0]);
  CHECK(scaled.b[1] == plain.b[1]);
}

TEST(a_singular_step_is_the_damped_step) {
  const Vector r = deq_test::random_vector(kDim, 5);
  Example example(3, {r, r});
  Conclusion conclusion;
  conclusion.counters[deq::kCount] = 1;
  conclusion.conclude(example, dot(r, r));
  CHECK(conclusion.decision.advance);
  CHECK(conclusion.decision.count == 0);
  CHECK(conclusion.counters[deq::kCount] == 2);
}

TEST(a_rejected_step_empties_the_window) {
  Example example(3, random_residuals(3));
  Conclusion conclusion;
  conclusion.counters[deq::kCount] = 2;
  conclusion.counters[deq::kSteps] = 2;
  conclusion.record[deq::kFirstResidual] = conclusion.record[deq::kBestResidual] = 1.0;
  conclusion.conclude(example, NAN);
  CHECK(conclusion.decision.restore);
  CHECK(!conclusion.decision.advance);
  CHECK(conclusion.counters[deq::kCount] == 0);
  CHECK(conclusion.counters[deq::kStatus] == deq::kRunning);
  conclusion.conclude(example, 1e9);
  CHECK(!static_cast<bool>(conclusion.decision));
  CHECK(conclusion.counters[deq::kStatus] == deq::kDiverged);
}

}  // namespace
