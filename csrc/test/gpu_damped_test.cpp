// The bodies of the damped kernels, run by the block emulator in every regime.
#include "cuda/damped.h"

#include "test/gpu_arrays.h"
#include "test/gpu_launch.h"

namespace {

using deq_test::Array;
using deq_test::Order;
using Vector = std::vector<double>;

constexpr int64_t kBatch = 3;
constexpr int64_t kMaxSteps = 5;

template <typename state_t>
struct Iteration {
  int64_t dim;
  double damping;
  Array<state_t> f_z;
  Array<state_t> z;
  Array<state_t> best_z;
  Vector record;
  std::vector<int64_t> counters;
  std::vector<int64_t> active = {kBatch};

  Iteration(int64_t dim_, double damping_)
      : dim(dim_),
        damping(damping_),
        f_z(kBatch, 1, dim, dim + 1),
        z(kBatch, 1, dim, dim),
        best_z(kBatch, 1, dim, dim),
        record(static_cast<size_t>(kBatch * (deq::kNormColumns + kMaxSteps)), std::nan("")),
        counters(static_cast<size_t>(kBatch * deq::kCounterColumns), 0) {
    for (int64_t sample = 0; sample < kBatch; ++sample) {
      z.set_random(sample, 0, static_cast<unsigned>(sample));
    }
  }

  int64_t status(int64_t sample) { return counters[sample * deq::kCounterColumns]; }

  void step(const char* regime) {
    deq::DampedStep<state_t> op = {};
    op.f_z = f_z.values.data();
    op.f_stride = f_z.stride;
    op.z = z.values.data();
    op.best_z = best_z.values.data();
    op.record = record.data();
    op.counters = counters.data();
    op.active = active.data();
    op.dim = dim;
    op.damping = damping;
    op.limits = {1e-6, 0.0, kMaxSteps, 0, 1e6, 0};
    const deq::GpuDemand demand = {kBatch, dim, 0, sizeof(state_t), 2, 0};
    deq_test::launch(op, demand, deq::plan_gpu(demand, deq_test::device_with(232448, 4), regime),
                     Order::kForwards);
  }
};

// Sample 0 runs, sample 1 is a fixed point at once, sample 2 turns NaN in the second step.
template <typename state_t>
void damped_steps(int64_t dim, double damping) {
  const double tolerance = deq_test::kTolerance<state_t>;
  std::vector<state_t> first;
  for (const char* regime : deq_test::kRegimes) {
    Iteration<state_t> iteration(dim, damping);
    for (int64_t step = 0; step < 3; ++step) {
      Vector expected;
      double residual_sq = 0.0;
      for (int64_t i = 0; i < dim; ++i) {
        const double z = iteration.z.at(0, 0, i);
        iteration.f_z.set(0, 0, i, 0.5 * z + 0.1);
        iteration.f_z.set(1, 0, i, iteration.z.at(1, 0, i));
        iteration.f_z.set(2, 0, i, step == 1 ? std::nan("") : 0.5 * iteration.z.at(2, 0, i));
        const double f = iteration.f_z.at(0, 0, i);
        residual_sq += (f - z) * (f - z);
        expected.push_back(z + damping * (f - z));
      }
      Vector before;
      for (int64_t i = 0; i < dim; ++i) {
        before.push_back(iteration.z.at(2, 0, i));
      }
      iteration.step(regime);
      Vector actual;
      Vector best;
      for (int64_t i = 0; i < dim; ++i) {
        actual.push_back(iteration.z.at(0, 0, i));
        best.push_back(iteration.best_z.at(2, 0, i));
      }
      CHECK(deq_test::near(actual, expected, tolerance));
      CHECK_NEAR(iteration.record[static_cast<size_t>(deq::kNormColumns + step)],
                 std::sqrt(residual_sq), tolerance);
      CHECK(iteration.status(1) == deq::kConverged);
      CHECK(iteration.status(2) == (step == 0 ? deq::kRunning : deq::kDiverged));
      CHECK(iteration.active[0] == (step == 0 ? 2 : 1));
      if (step == 0) {  // what sample 2 keeps when it diverges
        CHECK(deq_test::near(best, before, 0.0));
      }
    }
    first = first.empty() ? iteration.z.values : first;
    CHECK(deq_test::same_bits(iteration.z.values, first));
  }
}

TEST(gpu_damped_steps) {
  damped_steps<float>(1, 1.0);
  damped_steps<float>(2049, 0.5);
  damped_steps<double>(4500, 0.5);
  damped_steps<deq::float16>(2050, 1.0);
  damped_steps<deq::bfloat16>(37, 0.5);
}

TEST(gpu_norms_do_not_overflow) {
  Iteration<float> iteration(2100, 1.0);
  for (int64_t sample = 0; sample < kBatch; ++sample) {
    for (int64_t i = 0; i < iteration.dim; ++i) {
      iteration.z.set(sample, 0, i, 1e30);
      iteration.f_z.set(sample, 0, i, 3e30);
    }
  }
  iteration.step("block");
  CHECK(iteration.status(0) == deq::kRunning);
  CHECK_NEAR(iteration.record[deq::kNormColumns], 2e30 * std::sqrt(2100.0), 1e-6);
}

// Powers of two, so that the norms are exact but for the root.
TEST(gpu_norms_of_doubles_of_any_size) {
  for (const char* regime : deq_test::kRegimes) {
    for (double size : {0x1p-1000, 0x1p-660, 0x1p900}) {
      Iteration<double> iteration(4500, 1.0);
      for (int64_t i = 0; i < iteration.dim; ++i) {
        iteration.z.set(0, 0, i, size);
        iteration.f_z.set(0, 0, i, 3.0 * size);
        iteration.z.set(1, 0, i, size);
        iteration.f_z.set(1, 0, i, size);
        iteration.z.set(2, 0, i, i == 4400 ? INFINITY : size);
        iteration.f_z.set(2, 0, i, size);
      }
      iteration.step(regime);
      CHECK_NEAR(iteration.record[deq::kNormColumns] / (2.0 * size), std::sqrt(4500.0), 1e-12);
      CHECK(iteration.status(0) == deq::kRunning);
      CHECK(iteration.status(1) == deq::kConverged);
      CHECK(iteration.status(2) == deq::kDiverged);
    }
  }
}

template <typename state_t>
void neumann(int64_t dim) {
  const double damping = 0.75;
  std::vector<state_t> first;
  for (const char* regime : deq_test::kRegimes) {
    Array<state_t> vjp(kBatch, 1, dim, dim + 5);
    Array<state_t> cotangent(kBatch, 1, dim, dim + 8);
    Array<state_t> w(kBatch, 1, dim, dim);
    for (int64_t sample = 0; sample < kBatch; ++sample) {
      vjp.set_random(sample, 0, static_cast<unsigned>(sample));
      cotangent.set_random(sample, 0, static_cast<unsigned>(40 + sample));
      w.set_random(sample, 0, static_cast<unsigned>(80 + sample));
    }
    Vector expected;
    Vector expected_norms;
    for (int64_t sample = 0; sample < kBatch; ++sample) {
      double change_sq = 0.0;
      double updated_sq = 0.0;
      for (int64_t i = 0; i < dim; ++i) {
        const double before = w.at(sample, 0, i);
        const double target = cotangent.at(sample, 0, i) + vjp.at(sample, 0, i);
        const double change = damping * (target - before);
        expected.push_back(before + change);
        change_sq += change * change;
        updated_sq += (before + change) * (before + change);
      }
      expected_norms.push_back(std::sqrt(change_sq));
      expected_norms.push_back(std::sqrt(updated_sq));
    }
    Vector norms(2 * kBatch, std::nan(""));
    deq::NeumannStep<state_t> op = {};
    op.vjp = vjp.values.data();
    op.vjp_stride = vjp.stride;
    op.cotangent = cotangent.values.data();
    op.cotangent_stride = cotangent.stride;
    op.w = w.values.data();
    op.norms = norms.data();
    op.dim = dim;
    op.damping = damping;
    const deq::GpuDemand demand = {kBatch, dim, 0, sizeof(state_t), 2, 0};
    deq_test::launch(op, demand, deq::plan_gpu(demand, deq_test::device_with(232448, 4), regime),
                     Order::kInterleaved);
    Vector actual;
    for (const state_t& value : w.values) {
      actual.push_back(static_cast<double>(deq::widen(value)));
    }
    const double tolerance = deq_test::kTolerance<state_t>;
    CHECK(deq_test::near(actual, expected, tolerance));
    CHECK(deq_test::near(norms, expected_norms, tolerance));
    first = first.empty() ? w.values : first;
    CHECK(deq_test::same_bits(w.values, first));
  }
}

TEST(gpu_neumann_steps) {
  neumann<float>(1);
  neumann<float>(4099);
  neumann<double>(2047);
  neumann<deq::float16>(300);
  neumann<deq::bfloat16>(6001);
}

}  // namespace
