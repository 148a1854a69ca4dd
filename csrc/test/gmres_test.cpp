// The least-squares problem of a GMRES cycle against its normal equations, column by column.
#include "algebra/gmres.h"

#include <vector>

#include "test/check.h"

namespace {

using Vector = std::vector<double>;

constexpr int64_t kColumns = 6;

struct Problem {
  std::vector<Vector> hessenberg;  // [columns][kColumns + 1]
  Vector memory = Vector(static_cast<size_t>(deq::GmresTable::table_size(kColumns)), std::nan(""));
  deq::GmresTable table = {memory.data(), kColumns};

  // Appends a column whose last entry is `height`.
  bool append(const Vector& column, double height, double smallest) {
    const int64_t newest = static_cast<int64_t>(hessenberg.size());
    Vector padded(kColumns + 1, 0.0);
    for (int64_t j = 0; j <= newest; ++j) {
      padded[j] = table.column()[j] = column[j];
    }
    padded[newest + 1] = height;
    hessenberg.push_back(padded);
    return deq::append_hessenberg_column(deq::OneLane(), table, newest, height, smallest);
  }

  // ||r_0|| e_1 - H y.
  Vector residual(double right, int64_t known) const {
    Vector out(kColumns + 1, 0.0);
    out[0] = right;
    for (int64_t j = 0; j < known; ++j) {
      for (int64_t i = 0; i <= kColumns; ++i) {
        out[i] -= hessenberg[j][i] * table.solution()[j];
      }
    }
    return out;
  }
};

double dot(const Vector& a, const Vector& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

TEST(gmres_columns_solve_the_least_squares_problem) {
  constexpr double kRight = 3.0;
  Problem problem;
  problem.table.remainder() = kRight;
  for (int64_t newest = 0; newest < kColumns; ++newest) {
    const Vector column = deq_test::random_vector(kColumns, static_cast<unsigned>(newest));
    CHECK(problem.append(column, 0.5, 1e-12));
    const Vector residual = problem.residual(kRight, newest + 1);
    CHECK_NEAR(std::sqrt(dot(residual, residual)), std::fabs(problem.table.remainder()), 1e-12);
    for (int64_t j = 0; j <= newest; ++j) {
      CHECK_NEAR(dot(problem.hessenberg[j], residual), 0.0, 1e-11);
    }
  }
}

// A column that rotates to nothing: the minimiser stays what it was.
TEST(gmres_leaves_out_a_column_that_adds_nothing) {
  Problem problem;
  problem.table.remainder() = 1.0;
  CHECK(problem.append({1.0}, 1.0, 1e-12));
  const double before = problem.table.solution()[0];
  const double remainder = problem.table.remainder();
  CHECK(!problem.append({2.0, 2.0}, 0.0, 1e-12));
  CHECK(problem.table.solution()[0] == before);
  CHECK(problem.table.remainder() == remainder);
}

TEST(gmres_scale_is_a_power_of_two_whose_inverse_is_a_number) {
  constexpr deq::ScaleExponents kWide = deq::scale_exponents(double());
  CHECK(deq::probe_scale(1.0, kWide) == 4.0);
  CHECK(deq::probe_scale(0.75, kWide) == 2.0);
  CHECK(deq::probe_scale(3e-30, kWide) == 0x1p-97);
  CHECK(deq::probe_scale(0x1p1023, kWide) == 0x1p1022);
  CHECK(deq::probe_scale(0x1p-1074, kWide) == 0x1p-1021);
  CHECK(deq::probe_scale(60000.0, deq::scale_exponents(deq::float16())) == 0x1p14);
  CHECK(deq::probe_scale(0x1p-149, deq::scale_exponents(float())) == 0x1p-125);
}

}  // namespace
