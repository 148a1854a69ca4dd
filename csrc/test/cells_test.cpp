// The vectorised loops of structured cells, of every instruction set this machine has, against
// plain loops.
#include "cpu/cells/tiles.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "test/activation_value.h"
#include "test/check.h"

namespace {

using deq::Activation;
using deq::CellFinish;
using deq::CellTiles;
using deq::NormKind;
using deq_test::activation_value;

constexpr int64_t kDims[] = {1, 3, 8, 16, 17, 33, 63, 64, 100};
constexpr int64_t kRowCounts[] = {1, 2, 5, 6, 7, 8, 11, 13, 23};

template <typename accum_t>
int64_t padded(const CellTiles<accum_t>& tiles, int64_t dim) {
  return (dim + tiles.lanes - 1) / tiles.lanes * tiles.lanes;
}

// Random rows, zero in the padding.
template <typename accum_t>
std::vector<accum_t> random_rows(int64_t rows, int64_t dim, int64_t stride, unsigned seed) {
  const std::vector<double> random = deq_test::random_vector(rows * dim, seed);
  std::vector<accum_t> out(static_cast<size_t>(rows * stride));
  for (int64_t i = 0; i < rows * dim; ++i) {
    out[static_cast<size_t>(i / dim * stride + i % dim)] =
        static_cast<accum_t>(random[static_cast<size_t>(i)]);
  }
  return out;
}

template <typename accum_t>
void check_multiply(const CellTiles<accum_t>& tiles, double tolerance) {
  for (int64_t dim : kDims) {
    const int64_t stride = padded(tiles, dim);
    const std::vector<double> weight = deq_test::random_vector(dim * dim, 1);
    std::vector<accum_t> packed(static_cast<size_t>(dim * stride));
    for (int64_t column = 0; column < dim; ++column) {
      const int64_t begin = column / tiles.block * tiles.block;
      const int64_t width = std::min(tiles.block, stride - begin);
      for (int64_t k = 0; k < dim; ++k) {
        packed[static_cast<size_t>(begin * dim + k * width + column - begin)] =
            static_cast<accum_t>(weight[static_cast<size_t>(column * dim + k)]);
      }
    }
    for (int64_t rows : kRowCounts) {
      const auto in = random_rows<accum_t>(rows, dim, stride, 2);
      std::vector<accum_t> out(in.size(), accum_t(7));
      // To ask for rows changes nothing.
      const int64_t bytes = stride * static_cast<int64_t>(sizeof(accum_t));
      const deq::CellAhead ahead = {{in.data(), nullptr, out.data()}, {bytes, 0, bytes}};
      tiles.multiply(packed.data(), dim, stride, rows, in.data(), out.data(), ahead);
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t column = 0; column < stride; ++column) {
          double expected = 0.0;
          for (int64_t k = 0; column < dim && k < dim; ++k) {
            expected += weight[static_cast<size_t>(column * dim + k)] *
                        in[static_cast<size_t>(row * stride + k)];
          }
          CHECK_NEAR(out[static_cast<size_t>(row * stride + column)], expected, tolerance);
        }
        // A row by itself has the same bits as among others.
        std::vector<accum_t> alone(static_cast<size_t>(stride));
        tiles.multiply(packed.data(), dim, stride, 1, in.data() + row * stride, alone.data(), {});
        CHECK(std::memcmp(alone.data(), out.data() + row * stride,
                          static_cast<size_t>(stride) * sizeof(accum_t)) == 0);
      }
    }
  }
}

// Many small terms beside a large one: not each of them may be rounded by the large one's size.
void check_long_sums(const CellTiles<float>& tiles) {
  const int64_t dim = 1024;
  const std::vector<float> packed(static_cast<size_t>(dim * dim), 1.0f);
  std::vector<float> in(static_cast<size_t>(dim), 1.0f / 3000.0f);
  in[0] = 1000.0f;
  std::vector<float> out(in.size());
  tiles.multiply(packed.data(), dim, dim, 1, in.data(), out.data(), {});
  for (float value : out) {
    // One chain is off by 0.03.
    CHECK(std::fabs(value - (1000.0 + 1023.0 / 3000.0)) < 3e-3);
  }
}

template <typename accum_t>
void check_gather(const CellTiles<accum_t>& tiles, double tolerance) {
  // Row 0 has no entry, row 1 the same twice, row 2 itself and its neighbours.
  const std::vector<int64_t> crow = {4, 4, 6, 9};
  const std::vector<int64_t> col = {-1, -1, -1, -1, 12, 12, 12, 11, 10};
  const std::vector<accum_t> values = {9, 9, 9, 9, 0.5, -2, 1, 3, accum_t(0.25)};
  for (int64_t dim : kDims) {
    const int64_t stride = padded(tiles, dim);
    const auto y = random_rows<accum_t>(3, dim, stride, 4);
    const auto c = random_rows<accum_t>(3, dim, stride, 5);
    std::vector<accum_t> scaled(y.size());
    tiles.scale(y.data(), c.data(), 3 * stride, scaled.data());
    std::vector<accum_t> out(y.size(), accum_t(7));
    tiles.gather(crow.data(), col.data(), values.data(), 10, scaled.data(), stride, 3, out.data());
    for (size_t i = 0; i < static_cast<size_t>(stride); ++i) {
      const auto size = static_cast<size_t>(stride);
      const auto at = [&](size_t row) {
        return static_cast<double>(c[row * size + i]) * y[row * size + i];
      };
      CHECK(out[i] == accum_t(0));
      CHECK_NEAR(out[size + i], -1.5 * at(2), tolerance);
      CHECK_NEAR(out[2 * size + i], at(2) + 3 * at(1) + 0.25 * at(0), tolerance);
    }
  }
}

template <typename accum_t>
void check_finish(const CellTiles<accum_t>& tiles, double tolerance) {
  const int64_t rows = 3;
  int settled_rows = 0;
  int unsettled_rows = 0;
  for (int64_t dim : kDims) {
    const int64_t stride = padded(tiles, dim);
    const auto size = static_cast<size_t>(stride);
    const auto product = random_rows<accum_t>(rows, dim, stride, 6);
    const auto old_base = random_rows<accum_t>(rows, dim, stride, 13);
    const auto z = random_rows<accum_t>(rows, dim, stride, 7);
    const auto c = random_rows<accum_t>(rows, dim, stride, 8);
    const auto combined = random_rows<accum_t>(rows, dim, stride, 9);
    const auto drift = random_rows<accum_t>(rows, dim, stride, 10);
    for (int64_t number = 0; number < deq::kActivations; ++number) {
      for (int variant = 0; variant < 48; ++variant) {
        const NormKind norm = static_cast<NormKind>(variant / 16);
        const bool each_row = (variant & 1) != 0 && norm != NormKind::kRows;
        std::vector<accum_t> pre = product;
        std::vector<accum_t> base = old_base;
        for (size_t i = 0; i < pre.size(); ++i) {
          pre[i] += old_base[i];
        }
        std::vector<accum_t> next = product;
        std::vector<accum_t> scaled(pre.size(), accum_t(7));
        std::vector<accum_t> gap(pre.size(), accum_t(7));
        std::vector<accum_t> kept = combined;
        double sums[deq::kCellSums * rows];
        CellFinish<accum_t> finish = {};
        finish.activation = static_cast<Activation>(number);
        finish.norm = norm;
        finish.rtol = 1.2;
        finish.atol = 0.3;
        finish.each_row = each_row;
        finish.damping = variant & 4 ? accum_t(1) : accum_t(0.25);
        finish.dim = dim;
        finish.stride = stride;
        finish.rows = rows;
        finish.z = z.data();
        finish.product = variant & 2 ? product.data() : next.data();
        finish.base = base.data();
        finish.sum = variant & 2 ? base.data() : nullptr;
        finish.next = next.data();
        const bool accelerated = (variant & 8) != 0;
        finish.scale = accelerated ? nullptr : c.data();
        finish.scaled_next = accelerated ? nullptr : scaled.data();
        const accum_t units[rows] = {1, 2, accum_t(0.25)};
        finish.units = units;
        finish.gap = accelerated ? gap.data() : nullptr;
        finish.combined = kept.data();
        finish.drift = drift.data();
        const bool fresh[rows] = {(number & 1) != 0, true, false};
        finish.fresh = fresh;
        finish.sums = sums;
        tiles.finish(finish);
        CHECK(base == (variant & 2 ? pre : old_base));
        double expected[deq::kCellSums * rows] = {};
        for (size_t row = 0; row < rows; ++row) {
          double* of_row = expected + (finish.each_row ? deq::kCellSums * row : 0);
          double row_squares[2] = {};
          for (size_t i = 0; i < size; ++i) {
            const size_t at = row * size + i;
            const bool real = static_cast<int64_t>(i) < dim;
            const double f = real ? activation_value(finish.activation, pre[at]) : 0.0;
            const double residual = f - z[at];
            if (!accelerated) {
              CHECK_NEAR(next[at], z[at] + finish.damping * residual, tolerance);
            }
            CHECK_NEAR(scaled[at], finish.scale ? c[at] * static_cast<double>(next[at]) : 7.0,
                       tolerance);
            const double unit = units[finish.each_row ? row : 0];
            const bool is_fresh = fresh[finish.each_row ? row : 0];
            const double o = is_fresh ? residual : combined[at];
            const double u = unit * (o - residual);
            const double v = unit * static_cast<double>(drift[at]);
            of_row[deq::kSquareU] += u * u;
            of_row[deq::kProductUV] += u * v;
            of_row[deq::kSquareV] += v * v;
            of_row[deq::kProductUR] += u * unit * residual;
            CHECK_NEAR(gap[at], accelerated ? o - residual : 7.0, 2 * tolerance);
            CHECK_NEAR(kept[at], accelerated ? o : static_cast<double>(combined[at]), tolerance);
            const double squares[2] = {residual * residual, f * f};
            for (int s = 0; s < 2; ++s) {
              row_squares[s] += squares[s];
              if (norm == NormKind::kMax) {
                of_row[s] = std::max(of_row[s], squares[s]);
              } else if (norm == NormKind::kTwo) {
                of_row[s] += squares[s];
              }
            }
          }
          if (norm == NormKind::kRows) {
            for (int s = 0; s < 2; ++s) {
              of_row[s] = std::max(of_row[s], row_squares[s]);
            }
            const bool settled = std::sqrt(row_squares[0]) <= 0.3 + 1.2 * std::sqrt(row_squares[1]);
            double& largest = of_row[deq::kUnsettledNorm];
            largest = settled ? largest : std::max(largest, row_squares[0]);
            settled_rows += settled;
            unsettled_rows += !settled;
          }
        }
        for (int64_t i = 0; i < deq::kCellSums * (finish.each_row ? rows : 1); ++i) {
          const int64_t which = i % deq::kCellSums;
          const bool compared = which < deq::kSquareU ? true
                                : which < deq::kUnsettledNorm
                                    ? accelerated
                                    : which == deq::kUnsettledNorm && norm == NormKind::kRows;
          if (compared) {
            CHECK_NEAR(sums[i], expected[i], 200 * tolerance);
          }
        }
      }
    }
  }
  CHECK(settled_rows > 0 && unsettled_rows > 0);
}

template <typename accum_t>
void check_advance(const CellTiles<accum_t>& tiles, double tolerance) {
  for (int64_t dim : kDims) {
    const int64_t stride = padded(tiles, dim);
    const auto z = random_rows<accum_t>(2, dim, stride, 10);
    const auto moved = random_rows<accum_t>(2, dim, stride, 11);
    const auto c = random_rows<accum_t>(2, dim, stride, 12);
    const auto gap = random_rows<accum_t>(2, dim, stride, 13);
    const auto combined = random_rows<accum_t>(2, dim, stride, 14);
    const auto drift = random_rows<accum_t>(2, dim, stride, 15);
    const std::vector<accum_t> nothing(z.size(), std::numeric_limits<accum_t>::quiet_NaN());
    for (bool scaled : {false, true}) {
      for (double momentum : {0.0, -1.5}) {
        // In place. What is not read may be anything.
        std::vector<accum_t> next_z = z;
        std::vector<accum_t> next_combined = combined;
        std::vector<accum_t> next_drift = momentum == 0.0 ? nothing : drift;
        std::vector<accum_t> next_moved = momentum == 0.0 ? nothing : moved;
        std::vector<accum_t> mixed(z.size(), accum_t(7));
        deq::CellStep<accum_t> step = {};
        step.length = accum_t(0.75);
        step.share = accum_t(0.5);
        step.momentum = static_cast<accum_t>(momentum);
        step.size = 2 * stride;
        step.gap = gap.data();
        step.z = step.next_z = next_z.data();
        step.combined = step.next_combined = next_combined.data();
        step.drift = step.next_drift = next_drift.data();
        step.moved = step.next_moved = next_moved.data();
        step.scale = scaled ? c.data() : nullptr;
        tiles.advance(step, scaled ? mixed.data() : nullptr);
        for (size_t i = 0; i < z.size(); ++i) {
          const double o = combined[i];
          const double r = o - gap[i];
          const double back = momentum == 0.0 ? 0.0 : momentum * moved[i];
          const double along = momentum == 0.0 ? 0.0 : momentum * drift[i];
          CHECK_NEAR(next_moved[i], 0.75 * r - back, 10 * tolerance);
          CHECK(next_z[i] == z[i] + next_moved[i]);
          const double expected = r + 0.5 * gap[i] + along;
          CHECK_NEAR(next_combined[i], expected, 10 * tolerance);
          CHECK_NEAR(next_drift[i], o - expected, 10 * tolerance);
          CHECK_NEAR(mixed[i], scaled ? c[i] * static_cast<double>(next_z[i]) : 7.0, tolerance);
        }
      }
    }
  }
}

// One value through an activation; `f` is exact, as z is zero and there is no damping.
template <typename accum_t>
accum_t activated(const CellTiles<accum_t>& tiles, Activation activation, NormKind norm, accum_t x,
                  double* norms) {
  const int64_t stride = padded(tiles, 1);
  std::vector<accum_t> z(static_cast<size_t>(stride));
  std::vector<accum_t> next(static_cast<size_t>(stride), x);
  // -0 leaves every value as it is, -0 too.
  const std::vector<accum_t> base(static_cast<size_t>(stride), accum_t(-0.0));
  CellFinish<accum_t> finish = {};
  finish.activation = activation;
  finish.norm = norm;
  finish.damping = accum_t(1);
  finish.dim = 1;
  finish.stride = stride;
  finish.rows = 1;
  finish.z = z.data();
  finish.product = next.data();
  finish.base = base.data();
  finish.next = next.data();
  finish.sums = norms;
  tiles.finish(finish);
  return next[0];
}

template <typename accum_t>
void check_activations(const CellTiles<accum_t>& tiles, double relative) {
  const accum_t infinity = std::numeric_limits<accum_t>::infinity();
  const accum_t nan = std::numeric_limits<accum_t>::quiet_NaN();
  for (int64_t number = 0; number < deq::kActivations; ++number) {
    const auto activation = static_cast<Activation>(number);
    for (NormKind norm : {NormKind::kTwo, NormKind::kMax}) {
      double norms[2];
      // Relative to the value itself: tanh and elu must not lose digits near zero. Only gelu does,
      // where it goes to zero from below.
      for (double x : {-30.0, -5.0, -1.5, -0.4, -0.3, -1e-3, -1e-7, 0.0, 1e-7, 1e-3, 0.3, 0.4,
                       0.66,  0.67, 1.5,  3.0,  5.0,  5.6,   5.7,   8.4, 8.5,  30.0, 80.0}) {
        const auto stored = static_cast<accum_t>(x);
        const double actual = activated(tiles, activation, norm, stored, norms);
        const double expected = activation_value(activation, static_cast<double>(stored));
        const double scale = activation == Activation::kGelu ? std::fabs(x) : std::fabs(expected);
        CHECK(std::fabs(actual - expected) <= relative * scale);
        CHECK_NEAR(norms[0], actual * actual, 1e-15);
        CHECK(norms[0] == norms[1]);
      }
      CHECK(std::isnan(activated(tiles, activation, norm, nan, norms)));
      CHECK(!std::isfinite(norms[0]) && !std::isfinite(norms[1]));
    }
  }
  double norms[2];
  CHECK(activated(tiles, Activation::kTanh, NormKind::kMax, infinity, norms) == accum_t(1));
  CHECK(activated(tiles, Activation::kTanh, NormKind::kMax, -infinity, norms) == accum_t(-1));
  CHECK(activated(tiles, Activation::kSigmoid, NormKind::kMax, infinity, norms) == accum_t(1));
  CHECK_NEAR(activated(tiles, Activation::kSigmoid, NormKind::kMax, -infinity, norms), 0.0, 1e-30);
  CHECK(activated(tiles, Activation::kRelu, NormKind::kMax, infinity, norms) == infinity);
  CHECK(norms[0] == HUGE_VAL);
}

template <typename accum_t>
void check_all(const CellTiles<accum_t>& tiles, double tolerance, double relative) {
  check_multiply(tiles, 10 * tolerance);
  check_gather(tiles, tolerance);
  check_finish(tiles, tolerance);
  check_advance(tiles, tolerance);
  check_activations(tiles, relative);
}

#define TEST_ISA(isa)                                      \
  check_all(deq::isa::cell_tiles<double>(), 1e-14, 1e-15); \
  check_all(deq::isa::cell_tiles<float>(), 2e-6, 4e-7);    \
  check_long_sums(deq::isa::cell_tiles<float>())

TEST(cells_baseline) { TEST_ISA(baseline); }

#if defined(__x86_64__)
TEST(cells_avx2) {
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    TEST_ISA(avx2);
  }
}

TEST(cells_avx512) {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    TEST_ISA(avx512);
  }
}
#endif

}  // namespace
