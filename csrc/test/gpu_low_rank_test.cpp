// The bodies of the sum-form kernels, run by the block emulator in every regime.
#include "cuda/low_rank.h"

#include "cuda/low_rank_halves.h"
#include "test/gpu_arrays.h"
#include "test/gpu_launch.h"

namespace {

using deq_test::Array;
using deq_test::Order;
using Vector = std::vector<double>;

constexpr int64_t kBatch = 3;
constexpr int64_t kCapacity = 3;
constexpr double kScale = -0.8;

template <typename state_t, typename history_t>
struct Inverse {
  int64_t dim;
  Array<history_t> u;
  Array<history_t> v;
  std::vector<int64_t> rank = {0, 2, 3};

  Inverse(int64_t dim_, int64_t stride)
      : dim(dim_), u(kBatch, kCapacity, dim, stride), v(kBatch, kCapacity, dim, stride + 8) {
    for (int64_t sample = 0; sample < kBatch; ++sample) {
      for (int64_t i = 0; i < rank[sample]; ++i) {
        u.set_random(sample, i, static_cast<unsigned>(10 * sample + i));
        v.set_random(sample, i, static_cast<unsigned>(500 + 10 * sample + i));
      }
    }
  }

  deq::StoredRows<history_t> factor(Array<history_t>& rows) {
    return {rows.values.data(), kCapacity * rows.stride, rows.stride, rows.aligned()};
  }

  // H x, or H^T x, of one sample.
  Vector product(int64_t sample, const Vector& x, bool transpose) {
    Array<history_t>& left = transpose ? v : u;
    Array<history_t>& right = transpose ? u : v;
    Vector y;
    for (double value : x) {
      y.push_back(kScale * value);
    }
    for (int64_t j = 0; j < rank[sample]; ++j) {
      double dot = 0.0;
      for (int64_t i = 0; i < dim; ++i) {
        dot += right.at(sample, j, i) * x[i];
      }
      for (int64_t i = 0; i < dim; ++i) {
        y[i] += dot * left.at(sample, j, i);
      }
    }
    return y;
  }
};

template <typename T>
Vector row_of(Array<T>& rows, int64_t sample, int64_t j) {
  Vector out;
  for (int64_t i = 0; i < rows.dim; ++i) {
    out.push_back(rows.at(sample, j, i));
  }
  return out;
}

template <typename state_t, typename history_t>
void products(int64_t dim, int64_t stride, int64_t columns) {
  Inverse<state_t, history_t> inverse(dim, stride);
  Array<state_t> x(kBatch, columns, dim, dim);
  for (int64_t sample = 0; sample < kBatch; ++sample) {
    for (int64_t c = 0; c < columns; ++c) {
      x.set_random(sample, c, static_cast<unsigned>(900 + sample * columns + c));
    }
  }
  std::vector<state_t> first;
  for (const char* regime : deq_test::kRegimes) {
    Array<state_t> y(kBatch, columns, dim, dim);
    const deq::LowRankProduct<state_t, history_t> op = {x.values.data(),
                                                        y.values.data(),
                                                        inverse.factor(inverse.u),
                                                        inverse.factor(inverse.v),
                                                        inverse.rank.data(),
                                                        kCapacity,
                                                        columns,
                                                        dim,
                                                        kScale};
    deq::GpuDemand demand =
        deq::product_demand(kBatch * columns, dim, kCapacity, sizeof(history_t), 0);
    demand.rows = 0;
    deq_test::launch(op, demand, deq::plan_gpu(demand, deq_test::device_with(232448, 2), regime),
                     Order::kBackwards);
    for (int64_t sample = 0; sample < kBatch; ++sample) {
      for (int64_t c = 0; c < columns; ++c) {
        CHECK(deq_test::near(row_of(y, sample, c),
                             inverse.product(sample, row_of(x, sample, c), false),
                             deq_test::kTolerance<state_t>));
      }
    }
    first = first.empty() ? y.values : first;
    CHECK(deq_test::same_bits(y.values, first));
  }
}

TEST(gpu_low_rank_products) {
  products<float, float>(2051, 2052, 2);
  products<float, float>(5, 5, 1);
  products<double, float>(2048, 2048, 1);
  products<float, deq::bfloat16>(4100, 4104, 1);
  products<deq::float16, deq::float16>(77, 80, 3);
}

// The dots of the left factors with x, then their combination with these dots: the product U U^T x.
template <typename state_t, typename history_t>
void halves(int64_t dim, int64_t stride, int64_t columns, double scale) {
  Inverse<state_t, history_t> inverse(dim, stride);
  Array<state_t> x(kBatch, columns, dim, dim);
  for (int64_t sample = 0; sample < kBatch; ++sample) {
    for (int64_t c = 0; c < columns; ++c) {
      // Nobody reads x where its scale is 0, or where there are no rows to take dots with.
      if (scale != 0.0 || inverse.rank[sample] > 0) {
        x.set_random(sample, c, static_cast<unsigned>(900 + sample * columns + c));
      }
    }
  }
  std::vector<double> first;
  for (const char* regime : deq_test::kRegimes) {
    std::vector<double> dots(static_cast<size_t>(kBatch * columns * kCapacity), std::nan(""));
    const deq::LowRankDots<state_t, history_t> op = {
        x.values.data(), dots.data(), inverse.factor(inverse.u), inverse.rank.data(), kCapacity,
        columns,         dim};
    deq::GpuDemand demand =
        deq::product_demand(kBatch * columns, dim, kCapacity, sizeof(history_t), 0);
    demand.rows = 0;
    deq_test::launch(op, demand, deq::plan_gpu(demand, deq_test::device_with(232448, 2), regime),
                     Order::kBackwards);
    Vector coefficients = dots;
    for (int64_t sample = 0; sample < kBatch; ++sample) {
      for (int64_t c = 0; c < columns; ++c) {
        for (int64_t j = 0; j < kCapacity; ++j) {
          const size_t at = static_cast<size_t>((sample * columns + c) * kCapacity + j);
          double expected = 0.0;
          for (int64_t i = 0; j < inverse.rank[sample] && i < dim; ++i) {
            expected += inverse.u.at(sample, j, i) * x.at(sample, c, i);
          }
          CHECK_NEAR(dots[at], expected, 1e-11 * static_cast<double>(dim));
          if (j >= inverse.rank[sample]) {
            coefficients[at] = std::nan("");
          }
        }
      }
    }
    first = first.empty() ? dots : first;
    CHECK(deq_test::same_bits(dots, first));

    Array<state_t> y(kBatch, columns, dim, dim);
    const deq::LowRankCombination<state_t, history_t> combination = {x.values.data(),
                                                                     y.values.data(),
                                                                     inverse.factor(inverse.u),
                                                                     inverse.rank.data(),
                                                                     coefficients.data(),
                                                                     kCapacity,
                                                                     columns,
                                                                     dim,
                                                                     scale};
    deq_test::launch_tiles(combination, kBatch * columns, Order::kInterleaved);
    Array<state_t> in_place = x;
    deq::LowRankCombination<state_t, history_t> overwriting = combination;
    overwriting.x = overwriting.y = in_place.values.data();
    deq_test::launch_tiles(overwriting, kBatch * columns, Order::kBackwards);
    CHECK(deq_test::same_bits(in_place.values, y.values));
    for (int64_t sample = 0; sample < kBatch; ++sample) {
      for (int64_t c = 0; c < columns; ++c) {
        Vector expected;
        for (int64_t i = 0; i < dim; ++i) {
          expected.push_back(scale != 0.0 ? scale * x.at(sample, c, i) : 0.0);
          for (int64_t j = 0; j < inverse.rank[sample]; ++j) {
            const size_t at = static_cast<size_t>((sample * columns + c) * kCapacity + j);
            expected.back() += dots[at] * inverse.u.at(sample, j, i);
          }
        }
        CHECK(deq_test::near(row_of(y, sample, c), expected, deq_test::kTolerance<state_t>));
      }
    }
  }
}

TEST(gpu_low_rank_halves) {
  halves<float, float>(2051, 2052, 2, -0.5);
  halves<float, float>(5, 5, 1, 0.0);
  halves<double, double>(2048, 2048, 1, 1.0);
  halves<float, deq::bfloat16>(4100, 4104, 1, 0.0);
  halves<deq::float16, deq::float16>(77, 80, 3, 2.0);
  halves<deq::bfloat16, float>(33, 33, 1, 1.0);
}

TEST(gpu_low_rank_dots_do_not_overflow) {
  constexpr int64_t kDim = 40;
  Array<float> x(1, 1, kDim, kDim);
  for (int64_t i = 0; i < kDim; ++i) {
    x.set(0, 0, i, 1e30);
  }
  double dots = 0.0;
  const int64_t count = 1;
  const deq::LowRankDots<float, float> op = {
      x.values.data(), &dots, {x.values.data(), kDim, kDim, true}, &count, 1, 1, kDim};
  const deq::GpuDemand demand = deq::product_demand(1, kDim, 0, sizeof(float), 0);
  deq_test::launch(op, demand, deq::plan_gpu(demand, deq_test::device_with(232448, 2)),
                   Order::kForwards);
  CHECK_NEAR(dots, 4e61, 1e55);
}

// Append (s, y) and compare with v = H^T s, u = (s - H y) / <v, y>. Sample 1 gets a degenerate
// pair, sample 2 is full.
template <typename state_t, typename history_t>
void append(int64_t dim, int64_t stride) {
  std::vector<history_t> first;
  for (const char* regime : deq_test::kRegimes) {
    Inverse<state_t, history_t> inverse(dim, stride);
    Array<state_t> s(kBatch, 1, dim, dim);
    Array<state_t> y(kBatch, 1, dim, dim);
    for (int64_t sample = 0; sample < kBatch; ++sample) {
      s.set_random(sample, 0, static_cast<unsigned>(sample));
      y.set_random(sample, 0, static_cast<unsigned>(50 + sample));
    }
    for (int64_t i = 0; i < dim; ++i) {
      y.set(1, 0, i, 0.0);
    }
    const Vector s0 = row_of(s, 0, 0);
    const Vector new_v = inverse.product(0, s0, true);
    const Vector h_y = inverse.product(0, row_of(y, 0, 0), false);
    double v_dot_y = 0.0;
    for (int64_t i = 0; i < dim; ++i) {
      v_dot_y += new_v[i] * y.at(0, 0, i);
    }
    Vector new_u;
    for (int64_t i = 0; i < dim; ++i) {
      new_u.push_back((s0[i] - h_y[i]) / v_dot_y);
    }
    std::vector<history_t> kept_u(inverse.u.row(1, 0), inverse.u.row(2, 0) + 3 * stride);
    bool appended[kBatch];
    const deq::LowRankAppend<state_t, history_t> op = {inverse.factor(inverse.u),
                                                       inverse.factor(inverse.v),
                                                       inverse.rank.data(),
                                                       s.values.data(),
                                                       y.values.data(),
                                                       appended,
                                                       kCapacity,
                                                       dim,
                                                       kScale};
    const deq::GpuDemand demand = {kBatch, dim, 0, sizeof(history_t), 4 + 2 * kCapacity, 0};
    deq_test::launch(op, demand, deq::plan_gpu(demand, deq_test::device_with(232448, 2), regime),
                     Order::kForwards);
    const double tolerance = deq_test::tolerance_of<state_t, history_t>();
    CHECK(appended[0] && !appended[1] && !appended[2]);
    CHECK((inverse.rank == std::vector<int64_t>{1, 2, 3}));
    CHECK(deq_test::near(row_of(inverse.v, 0, 0), new_v, tolerance));
    CHECK(deq_test::near(row_of(inverse.u, 0, 0), new_u, 20 * tolerance));
    CHECK(deq_test::same_bits(
        kept_u, std::vector<history_t>(inverse.u.row(1, 0), inverse.u.row(2, 0) + 3 * stride)));
    first = first.empty() ? inverse.u.values : first;
    CHECK(deq_test::same_bits(inverse.u.values, first));
  }
}

TEST(gpu_low_rank_append) {
  append<float, float>(2051, 2052);
  append<double, double>(9, 10);
  append<float, deq::bfloat16>(4100, 4104);
  append<deq::bfloat16, float>(33, 33);
}

TEST(gpu_low_rank_second_append_builds_on_the_first) {
  constexpr int64_t kDim = 300;
  Inverse<double, double> inverse(kDim, kDim);
  inverse.rank = {0, 0, 0};
  Array<double> s(kBatch, 1, kDim, kDim);
  Array<double> y(kBatch, 1, kDim, kDim);
  bool appended[kBatch];
  const deq::LowRankAppend<double, double> op = {inverse.factor(inverse.u),
                                                 inverse.factor(inverse.v),
                                                 inverse.rank.data(),
                                                 s.values.data(),
                                                 y.values.data(),
                                                 appended,
                                                 kCapacity,
                                                 kDim,
                                                 kScale};
  const deq::GpuDemand demand = {kBatch, kDim, 0, sizeof(double), 4 + 2 * kCapacity, 0};
  for (unsigned pair = 0; pair < 3; ++pair) {
    for (int64_t sample = 0; sample < kBatch; ++sample) {
      s.set_random(sample, 0, 10 * pair + static_cast<unsigned>(sample));
      y.set_random(sample, 0, 700 + 10 * pair + static_cast<unsigned>(sample));
    }
    deq_test::launch(op, demand, deq::plan_gpu(demand, deq_test::device_with(232448, 2)),
                     Order::kInterleaved);
    for (int64_t sample = 0; sample < kBatch; ++sample) {
      // The secant equation: H y = s.
      CHECK(deq_test::near(inverse.product(sample, row_of(y, sample, 0), false),
                           row_of(s, sample, 0), 1e-9));
    }
  }
}

TEST(gpu_low_rank_refuses_a_rank_that_cannot_be) {
  Inverse<float, float> inverse(40, 40);
  inverse.rank[1] = kCapacity + 1;
  Array<float> x(kBatch, 1, 40, 40);
  Array<float> y(kBatch, 1, 40, 40);
  const deq::LowRankProduct<float, float> op = {x.values.data(),
                                                y.values.data(),
                                                inverse.factor(inverse.u),
                                                inverse.factor(inverse.v),
                                                inverse.rank.data(),
                                                kCapacity,
                                                1,
                                                40,
                                                kScale};
  const deq::GpuDemand demand = deq::product_demand(kBatch, 40, 0, sizeof(float), 0);
  bool refused = false;
  try {
    deq_test::launch(op, demand, deq::plan_gpu(demand, deq_test::device_with(232448, 2)),
                     Order::kForwards);
  } catch (const std::runtime_error&) {
    refused = true;
  }
  CHECK(refused);
}

}  // namespace
