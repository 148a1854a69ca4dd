// The bodies of the GMRES kernels, run by the block emulator in every regime on whole solves.
#include "cuda/gmres.h"

#include "test/gpu_arrays.h"
#include "test/gpu_launch.h"

namespace {

using deq_test::Array;
using deq_test::Order;
using Vector = std::vector<double>;

constexpr int64_t kBatch = 4;
constexpr int64_t kColumns = 4;
constexpr int64_t kMaxSteps = 12;

// f(z) = gain z + shift, elementwise, with as many gains in a sample as its number plus one: so
// many products solve it. z and the shift are of a size that is given. What is not finite is put in
// by the test.
template <typename state_t>
struct Solve {
  using accum_t = deq::accumulate_t<state_t>;

  int64_t dim;
  Array<state_t> f_z;
  Array<state_t> z;
  Array<state_t> best_z;
  Array<accum_t> basis;
  Array<accum_t> start;
  Array<accum_t> start_residual;
  Vector algebra;
  Vector record;
  std::vector<int64_t> counters;
  std::vector<int64_t> active = {kBatch};
  double size;

  Solve(int64_t dim_, int64_t stride, double size_ = 1.0)
      : dim(dim_),
        f_z(kBatch, 1, dim, dim + 1),
        z(kBatch, 1, dim, dim),
        best_z(kBatch, 1, dim, dim),
        basis(kBatch, kColumns + 1, dim, stride),
        start(kBatch, 1, dim, dim),
        start_residual(kBatch, 1, dim, dim),
        algebra(static_cast<size_t>(kBatch * deq::GmresTable::table_size(kColumns)), std::nan("")),
        record(static_cast<size_t>(kBatch * (deq::kNormColumns + kMaxSteps)), std::nan("")),
        counters(static_cast<size_t>(kBatch * deq::kCounterColumns), 0),
        size(size_) {
    for (int64_t sample = 0; sample < kBatch; ++sample) {
      z.set_random(sample, 0, static_cast<unsigned>(sample));
      for (int64_t i = 0; i < dim; ++i) {
        z.set(sample, 0, i, size * z.at(sample, 0, i));
      }
    }
  }

  double gain(int64_t sample, int64_t i) const {
    constexpr double kGains[] = {0.5, -0.75, 2.0, -3.0};
    return kGains[i % (sample + 1)];
  }
  double shift(int64_t i) const { return size * (1.0 + 0.25 * static_cast<double>(i % 5)); }
  int64_t counter(int64_t sample, deq::Counter which) {
    return counters[static_cast<size_t>(sample * deq::kCounterColumns + which)];
  }

  void evaluate(int64_t broken) {
    for (int64_t sample = 0; sample < kBatch; ++sample) {
      for (int64_t i = 0; i < dim; ++i) {
        f_z.set(sample, 0, i, gain(sample, i) * z.at(sample, 0, i) + shift(i));
      }
    }
    if (broken >= 0) {
      f_z.set(broken, 0, 0, std::nan(""));
    }
  }

  void step(const char* regime, double rtol) {
    const deq::GmresProblem<state_t> problem = {
        f_z.values.data(),
        f_z.stride,
        z.values.data(),
        best_z.values.data(),
        {basis.values.data(), (kColumns + 1) * basis.stride, basis.stride, basis.aligned()},
        start.values.data(),
        start_residual.values.data(),
        algebra.data(),
        record.data(),
        counters.data(),
        active.data(),
        dim,
        kColumns,
        deq::gmres_options<state_t>({rtol, 0.0, kMaxSteps, 0, 1e6, 1})};
    const deq::GpuDemand demand = deq::gmres_step_demand(kBatch, dim, kColumns, sizeof(accum_t));
    const deq::GpuPlan plan = deq::plan_gpu(demand, deq_test::device_with(232448, 2), regime);
    deq_test::launch(deq::GmresEvaluation<state_t>{problem}, demand, plan, Order::kBackwards);
    deq_test::launch(deq::GmresImage<state_t>{problem}, demand, plan, Order::kInterleaved);
  }
};

template <typename state_t>
void solves(int64_t dim, int64_t stride, double rtol) {
  std::vector<state_t> first;
  for (const char* regime : deq_test::kRegimes) {
    Solve<state_t> solve(dim, stride);
    for (int64_t step = 0; solve.active[0] > 0 && step < kMaxSteps; ++step) {
      solve.evaluate(-1);
      solve.step(regime, rtol);
    }
    CHECK(solve.active[0] == 0);
    for (int64_t sample = 0; sample < kBatch; ++sample) {
      CHECK(solve.counter(sample, deq::kStatus) == deq::kConverged);
      // f(w_0), the products, and the end; maps of 16 bits are affine but for their rounding.
      CHECK(sizeof(state_t) == 2 ||
            solve.counter(sample, deq::kSteps) <= std::min(dim, sample + 1) + 2);
      Vector actual;
      Vector expected;
      for (int64_t i = 0; i < dim; ++i) {
        actual.push_back(solve.best_z.at(sample, 0, i));
        expected.push_back(solve.shift(i) / (1.0 - solve.gain(sample, i)));
      }
      CHECK(deq_test::near(actual, expected, 10.0 * deq_test::kTolerance<state_t>));
    }
    first = first.empty() ? solve.best_z.values : first;
    CHECK(deq_test::same_bits(solve.best_z.values, first));
  }
}

TEST(gpu_gmres_solves) {
  solves<float>(2051, 2052, 1e-5);
  solves<float>(5, 5, 1e-5);
  solves<double>(2048, 2048, 1e-12);
  solves<double>(4101, 4104, 1e-12);
  solves<deq::bfloat16>(77, 80, 2e-2);
  solves<deq::float16>(1, 4, 2e-3);
}

// In no more steps than at size 1, and with the same solutions.
TEST(gpu_gmres_solves_at_any_size) {
  for (const char* regime : deq_test::kRegimes) {
    Vector expected;
    for (const double size : {1.0, 0x1p-999, 0x1p-664, 0x1p532, 0x1p1000}) {
      Solve<double> solve(2051, 2052, size);
      for (int64_t step = 0; solve.active[0] > 0 && step < kMaxSteps; ++step) {
        solve.evaluate(-1);
        solve.step(regime, 1e-12);
      }
      Vector actual;
      for (int64_t sample = 0; sample < kBatch; ++sample) {
        CHECK(solve.counter(sample, deq::kStatus) == deq::kConverged);
        CHECK(solve.counter(sample, deq::kSteps) <= sample + 3);
        for (int64_t i = 0; i < solve.dim; ++i) {
          actual.push_back(solve.best_z.at(sample, 0, i) / size);
        }
      }
      expected = expected.empty() ? actual : expected;
      CHECK(deq_test::near(actual, expected, 1e-12));
    }
  }
}

// The first image that is not finite ends its cycle; the second makes its sample diverge.
TEST(gpu_gmres_rejects_what_is_not_finite) {
  constexpr int64_t kBroken = 3;
  for (const char* regime : deq_test::kRegimes) {
    Solve<double> solve(50, 50);
    for (int64_t step = 0; step < 6; ++step) {
      solve.evaluate(step == 2 || step == 5 ? kBroken : -1);
      solve.step(regime, 1e-12);
    }
    CHECK(solve.counter(kBroken, deq::kStatus) == deq::kDiverged);
    CHECK(solve.counter(kBroken, deq::kSteps) == 6);
    CHECK(solve.active[0] == 0);
    const double* trace =
        solve.record.data() + kBroken * (deq::kNormColumns + kMaxSteps) + deq::kNormColumns;
    CHECK(std::isnan(trace[2]) && std::isnan(trace[5]));
    // The end of the first cycle finds what its one product predicted.
    CHECK_NEAR(trace[3], trace[1], 1e-9 * trace[1]);
  }
}

}  // namespace
