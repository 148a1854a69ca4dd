// The bodies of the Anderson kernels, run by the block emulator in every regime.
#include "cuda/anderson.h"

#include <algorithm>
#include <array>

#include "test/gpu_arrays.h"
#include "test/gpu_launch.h"

namespace {

using deq_test::Array;
using deq_test::Order;
using Vector = std::vector<double>;

constexpr int64_t kMaxSteps = 9;
constexpr int64_t kRecord = deq::kNormColumns + kMaxSteps;

struct Setup {
  int64_t batch;
  int64_t dim;
  int64_t capacity;
  int64_t residual_stride;
  int64_t image_stride;
  double damping = 0.9;
  double regularization = 1e-2;
  double size = 1.0;  // of the states
};

// Everything a solve works on.
template <typename state_t, typename history_t>
struct Solve {
  using accum_t = deq::accumulate_t<state_t>;

  Setup setup;
  deq::AndersonOptions options;
  Array<state_t> f_z;
  Array<state_t> z;
  Array<state_t> best_z;
  Array<history_t> residual_changes;
  Array<history_t> image_changes;
  Array<state_t> last_residual;
  Vector algebra;
  Vector record;
  std::vector<int64_t> counters;
  std::vector<int64_t> active;

  explicit Solve(const Setup& s)
      : setup(s),
        options{s.damping,
                s.regularization,
                deq::dependent_share<history_t, accum_t>(),
                deq::ScaleRangeOf<history_t, accum_t>::value,
                {1e-9, 0.0, kMaxSteps, 0, 1e6, 1}},
        f_z(s.batch, 1, s.dim, s.dim + 3),
        z(s.batch, 1, s.dim, s.dim),
        best_z(s.batch, 1, s.dim, s.dim),
        residual_changes(s.batch, s.capacity, s.dim, s.residual_stride),
        image_changes(s.batch, s.capacity, s.dim, s.image_stride),
        last_residual(s.batch, 1, s.dim, s.dim),
        algebra(static_cast<size_t>(s.batch * deq::AndersonTable::table_size(s.capacity)),
                std::nan("")),
        record(static_cast<size_t>(s.batch * kRecord), std::nan("")),
        counters(static_cast<size_t>(s.batch * deq::kCounterColumns), 0),
        active{s.batch} {
    for (int64_t sample = 0; sample < s.batch; ++sample) {
      const Vector start = deq_test::random_vector(s.dim, static_cast<unsigned>(sample));
      for (int64_t i = 0; i < s.dim; ++i) {
        z.set(sample, 0, i, s.size * start[i]);
      }
    }
  }

  int64_t* counter(int64_t sample) { return counters.data() + sample * deq::kCounterColumns; }
  deq::AndersonTable table(int64_t sample) {
    return {algebra.data() + sample * deq::AndersonTable::table_size(setup.capacity),
            setup.capacity};
  }

  // An elementwise map whose slopes run from -0.9 to 0.6.
  void evaluate() {
    for (int64_t sample = 0; sample < setup.batch; ++sample) {
      for (int64_t i = 0; i < setup.dim; ++i) {
        const double slope = -0.9 + 1.5 * static_cast<double>(i % 101) / 100.0;
        const double angle = z.at(sample, 0, i) / setup.size;
        f_z.set(sample, 0, i, setup.size * (0.3 + slope * std::sin(angle)));
      }
    }
  }

  void fill_f(int64_t sample, double value) {
    for (int64_t i = 0; i < setup.dim; ++i) {
      f_z.set(sample, 0, i, value);
    }
  }

  static deq::StoredRows<history_t> stored(Array<history_t>& rows) {
    return {rows.values.data(), rows.rows * rows.stride, rows.stride, rows.aligned()};
  }

  deq::AndersonStep<state_t, history_t> op() {
    return {f_z.values.data(),
            f_z.stride,
            z.values.data(),
            best_z.values.data(),
            stored(residual_changes),
            stored(image_changes),
            last_residual.values.data(),
            algebra.data(),
            record.data(),
            counters.data(),
            active.data(),
            setup.dim,
            setup.capacity,
            options};
  }

  void step_emulated(const char* regime, const deq::GpuDevice& device,
                     Order order = Order::kForwards) {
    const deq::GpuDemand demand =
        deq::anderson_step_demand(setup.batch, setup.dim, setup.capacity, sizeof(history_t));
    const deq::GpuPlan plan = deq::plan_gpu(demand, device, regime);
    CHECK(std::string(deq::regime_name(plan.regime)) == regime);
    deq_test::launch(op(), demand, plan, order);
  }

  // The same step with plain loops over one sample at a time, in double.
  void step_plainly() {
    for (int64_t sample = 0; sample < setup.batch; ++sample) {
      if (counter(sample)[deq::kStatus] == deq::kRunning) {
        step_sample_plainly(sample);
      }
    }
  }

  void step_sample_plainly(int64_t sample) {
    const int64_t seen = counter(sample)[deq::kCount];
    const deq::ChangeRing ring(setup.capacity, seen);
    const bool is_last = counter(sample)[deq::kSteps] + 1 == kMaxSteps;
    const int64_t count = is_last ? 0 : ring.count;
    double* const own_record = record.data() + sample * kRecord;
    const double scale = own_record[deq::kDirectionScale];
    Vector r;
    deq::StepNorms norms = {};
    for (int64_t i = 0; i < setup.dim; ++i) {
      const double f = f_z.at(sample, 0, i);
      r.push_back(f - z.at(sample, 0, i));
      norms.residual.sum += r.back() * r.back();
      norms.f.sum += f * f;
      if (count > 0) {
        const double change = r.back() - last_residual.at(sample, 0, i);
        residual_changes.set(sample, ring.newest, i, scale * change);
      }
    }
    Vector b(static_cast<size_t>(setup.capacity) + 1);
    Vector column(b.size());
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t i = 0; i < setup.dim; ++i) {
        b[j] += residual_changes.at(sample, j, i) * (scale * r[i]);
        column[j] +=
            residual_changes.at(sample, j, i) * residual_changes.at(sample, ring.newest, i);
      }
    }
    deq::AndersonDecision decision;
    deq::conclude_anderson(deq::OneLane(), options, table(sample), setup.dim, norms, b.data(),
                           column.data(), own_record, counter(sample), &decision);
    active[0] -= counter(sample)[deq::kStatus] != deq::kRunning ? 1 : 0;
    for (int64_t i = 0; i < setup.dim; ++i) {
      if (decision.restore) {
        z.set(sample, 0, i, best_z.at(sample, 0, i));
        continue;
      }
      if (decision.keep) {
        best_z.set(sample, 0, i, z.at(sample, 0, i));
      }
      if (decision.advance) {
        z.set(sample, 0, i, next_iterate(sample, i, r[i], ring, decision.count, b));
      }
    }
  }

  double next_iterate(int64_t sample, int64_t i, double r, const deq::ChangeRing& ring,
                      int64_t count, const Vector& coefficients) {
    const double step = setup.damping * r;
    if (setup.capacity == 0) {
      return z.at(sample, 0, i) + step;
    }
    last_residual.set(sample, 0, i, r);
    if (ring.count > 0) {
      image_changes.set(sample, ring.newest, i, image_changes.at(sample, ring.newest, i) + step);
    }
    double correction = 0.0;
    for (int64_t j = 0; j < count; ++j) {
      correction += coefficients[j] * image_changes.at(sample, j, i);
    }
    image_changes.set(sample, ring.next, i, correction);
    return z.at(sample, 0, i) + step + image_changes.at(sample, ring.next, i);
  }

  template <typename T>
  static Vector widened(const std::vector<T>& values) {
    Vector out;
    for (const T& value : values) {
      out.push_back(static_cast<double>(deq::widen(value)));
    }
    return out;
  }

  // The record, all of it of the size of the residuals.
  Vector sized_record() const {
    Vector out = record;
    for (int64_t sample = 0; sample < setup.batch; ++sample) {
      out[static_cast<size_t>(sample * kRecord + deq::kDirectionScale)] *= setup.size * setup.size;
    }
    return out;
  }

  // The Gram matrices alone: the other half of a table is working memory.
  Vector grams() {
    Vector out;
    for (int64_t sample = 0; sample < setup.batch; ++sample) {
      for (int64_t i = 0; i < setup.capacity * setup.capacity; ++i) {
        out.push_back(table(sample).gram(i / setup.capacity, i % setup.capacity));
      }
    }
    return out;
  }

  void check_near(Solve& expected) {
    const double tolerance = deq_test::tolerance_of<state_t, history_t>();
    auto check = [&](const Vector& now, const Vector& wanted) {
      CHECK(deq_test::near(now, wanted, tolerance));
    };
    CHECK(counters == expected.counters);
    CHECK(active == expected.active);
    check(sized_record(), expected.sized_record());
    check(grams(), expected.grams());
    check(widened(z.values), widened(expected.z.values));
    check(widened(best_z.values), widened(expected.best_z.values));
    check(widened(last_residual.values), widened(expected.last_residual.values));
    check(widened(residual_changes.values), widened(expected.residual_changes.values));
    check(widened(image_changes.values), widened(expected.image_changes.values));
  }

  void check_same(Solve& other) {
    CHECK(counters == other.counters);
    CHECK(active == other.active);
    CHECK(deq_test::same_bits(record, other.record));
    CHECK(deq_test::same_bits(grams(), other.grams()));
    CHECK(deq_test::same_bits(z.values, other.z.values));
    CHECK(deq_test::same_bits(best_z.values, other.best_z.values));
    CHECK(deq_test::same_bits(last_residual.values, other.last_residual.values));
    CHECK(deq_test::same_bits(residual_changes.values, other.residual_changes.values));
    CHECK(deq_test::same_bits(image_changes.values, other.image_changes.values));
  }
};

// Some steps in every regime: each close to the plain step from the same state, and the regimes
// equal to the bit. Sample 1 is frozen from the start; sample 2 turns NaN, goes back to its best
// iterate and begins a new window; the ring goes round.
template <typename state_t, typename history_t>
void steps_in_every_regime(const Setup& setup, const deq::GpuDevice& device) {
  std::vector<Solve<state_t, history_t>> solves(3, Solve<state_t, history_t>(setup));
  for (auto& solve : solves) {
    solve.counter(1)[deq::kStatus] = deq::kStalled;
    solve.active[0] -= 1;
  }
  for (int64_t step = 0; step < kMaxSteps; ++step) {
    for (size_t i = 0; i < solves.size(); ++i) {
      Solve<state_t, history_t>& solve = solves[i];
      solve.evaluate();
      solve.fill_f(1, std::nan(""));
      if (step == 2) {
        solve.fill_f(2, std::nan(""));
      }
      Solve<state_t, history_t> plain = solve;
      solve.step_emulated(deq_test::kRegimes[i], device);
      plain.step_plainly();
      solve.check_near(plain);
    }
    solves[1].check_same(solves[0]);
    solves[2].check_same(solves[0]);
  }
  CHECK(solves[0].active[0] == 0);
  CHECK(solves[0].counter(0)[deq::kStatus] == deq::kMaxSteps ||
        solves[0].counter(0)[deq::kStatus] == deq::kConverged);
  CHECK(solves[0].counter(2)[deq::kRejections] == 1);
  CHECK((setup.size == 1.0) == (solves[0].record[deq::kDirectionScale] == 1.0));
}

TEST(gpu_anderson_steps_on_odd_sizes) {
  const deq::GpuDevice device = deq_test::device_with(232448, 16);
  for (const int64_t dim : {1, 3, 250, 2047, 2048, 2049, 4100, 9001}) {
    const int64_t stride = deq::round_up(dim, 4);
    // More changes than dimensions depend on each other, and rounding decides which are used.
    const int64_t capacity = std::min<int64_t>(3, dim);
    steps_in_every_regime<float, float>({3, dim, capacity, stride, stride}, device);
  }
}

TEST(gpu_anderson_steps_with_rows_off_16_bytes) {
  const deq::GpuDevice device = deq_test::device_with(232448, 16);
  steps_in_every_regime<float, float>({3, 2051, 3, 2053, 2052}, device);
  steps_in_every_regime<float, float>({3, 2051, 3, 2052, 2053}, device);
  steps_in_every_regime<float, deq::bfloat16>({3, 2051, 3, 2051, 2053}, device);
}

TEST(gpu_anderson_steps_in_every_type) {
  const deq::GpuDevice device = deq_test::device_with(232448, 4);
  const Setup setup = {3, 2117, 3, 2120, 2128};
  steps_in_every_regime<double, double>(setup, device);
  steps_in_every_regime<double, float>(setup, device);
  steps_in_every_regime<double, deq::bfloat16>(setup, device);
  steps_in_every_regime<float, deq::bfloat16>(setup, device);
  steps_in_every_regime<deq::float16, deq::float16>(setup, device);
  steps_in_every_regime<deq::float16, float>(setup, device);
  steps_in_every_regime<deq::float16, deq::bfloat16>(setup, device);
  steps_in_every_regime<deq::bfloat16, deq::bfloat16>(setup, device);
  steps_in_every_regime<deq::bfloat16, float>(setup, device);
}

TEST(gpu_anderson_windows_of_one_and_of_two) {
  const deq::GpuDevice device = deq_test::device_with(232448, 4);
  for (const double damping : {0.9, 1.0}) {
    steps_in_every_regime<float, float>({3, 4100, 0, 4100, 4100, damping}, device);
    steps_in_every_regime<float, float>({3, 4100, 1, 4100, 4100, damping}, device);
  }
}

TEST(gpu_anderson_steps_on_states_of_any_size) {
  const deq::GpuDevice device = deq_test::device_with(232448, 4);
  for (const double size : {0x1p-100, 0x1p+100}) {
    const Setup setup = {3, 2117, 3, 2120, 2128, 0.9, 1e-2, size};
    steps_in_every_regime<float, float>(setup, device);
    steps_in_every_regime<deq::bfloat16, deq::bfloat16>(setup, device);
  }
}

TEST(gpu_anderson_changes_of_no_use_leave_the_damped_step) {
  for (const char* regime : deq_test::kRegimes) {
    const Setup setup = {2, 2051, 2, 2052, 2052, 0.5};
    Solve<float, float> solve(setup);
    for (int64_t step = 0; step < 4; ++step) {
      // The residual is 0.5 each time, and its change exactly nothing.
      std::fill(solve.z.values.begin(), solve.z.values.end(), 0.0f);
      solve.fill_f(0, 0.5);
      solve.fill_f(1, 0.5);
      solve.step_emulated(regime, deq_test::device_with(232448, 2));
      CHECK(solve.z.at(0, 0, 7) == 0.25);
      CHECK(solve.z.at(1, 0, setup.dim - 1) == 0.25);
    }
    CHECK(solve.counter(1)[deq::kCount] == 4);
    CHECK(solve.image_changes.at(0, 1, 0) == 0.0);   // the correction of the last step
    CHECK(solve.image_changes.at(0, 0, 0) == 0.25);  // the change that it completed
  }
}

TEST(gpu_anderson_steps_whose_table_stays_in_device_memory) {
  const Setup setup = {3, 70, 7, 72, 72};
  const deq::GpuDemand demand = deq::anderson_step_demand(3, 70, 7, sizeof(float));
  deq::GpuDemand without = demand;
  without.table_doubles = 0;
  const deq::GpuDevice device =
      deq_test::device_with(deq::shared_layout(without, 0, 0).bytes + 100, 2);
  CHECK(!deq::plan_gpu(demand, device, "grid").table_staged);
  Solve<float, float> in_place(setup);
  Solve<float, float> staged(setup);
  for (int64_t step = 0; step < kMaxSteps; ++step) {
    in_place.evaluate();
    staged.evaluate();
    in_place.step_emulated("grid", device);
    staged.step_emulated("grid", deq_test::device_with(232448, 2));
    in_place.check_same(staged);
  }
}

TEST(gpu_anderson_more_changes_than_one_flush_and_one_warp_take) {
  const int64_t capacity = deq::kRowsPerFlush + 5;
  const Setup setup = {1, 60, capacity, 60, 60};
  Solve<float, float> solve(setup);
  for (int64_t j = 0; j < capacity; ++j) {
    solve.residual_changes.set_random(0, j, static_cast<unsigned>(100 + j));
    solve.image_changes.set_random(0, j, static_cast<unsigned>(200 + j));
  }
  solve.last_residual.set_random(0, 0, 300);
  for (int64_t j = 0; j < capacity; ++j) {
    for (int64_t i = 0; i < capacity; ++i) {
      double sum = 0.0;
      for (int64_t n = 0; n < setup.dim; ++n) {
        sum += solve.residual_changes.at(0, i, n) * solve.residual_changes.at(0, j, n);
      }
      solve.table(0).gram(i, j) = sum;
    }
  }
  // The ring has gone round, and its newest slot is in the middle.
  solve.counter(0)[deq::kCount] = capacity + 20;
  solve.counter(0)[deq::kSteps] = 3;
  for (double& value : solve.record) {
    value = 1e3;
  }
  solve.evaluate();
  for (const char* regime : deq_test::kRegimes) {
    Solve<float, float> emulated = solve;
    Solve<float, float> plain = solve;
    emulated.step_emulated(regime, deq_test::device_with(232448, 2));
    plain.step_plainly();
    // 37 weights from float32 dots of 60 random numbers have fewer digits.
    CHECK(deq_test::near(Solve<float, float>::widened(emulated.z.values),
                         Solve<float, float>::widened(plain.z.values), 1e-3));
    CHECK(deq_test::near(emulated.grams(), plain.grams(), 2e-5));
    CHECK(emulated.counters == plain.counters);
  }
}

TEST(gpu_anderson_results_do_not_depend_on_the_order_of_threads) {
  const deq::GpuDevice device = deq_test::device_with(232448, 4);
  const Setup setup = {2, 4500, 3, 4500, 4500};
  for (const char* regime : deq_test::kRegimes) {
    std::vector<Solve<float, float>> solves(3, Solve<float, float>(setup));
    const Order orders[] = {Order::kForwards, Order::kBackwards, Order::kInterleaved};
    for (int64_t step = 0; step < 5; ++step) {
      for (size_t i = 0; i < solves.size(); ++i) {
        solves[i].evaluate();
        solves[i].step_emulated(regime, device, orders[i]);
      }
      solves[1].check_same(solves[0]);
      solves[2].check_same(solves[0]);
    }
  }
}

TEST(gpu_anderson_step_without_elements) {
  for (const char* regime : {"block", "grid"}) {
    Solve<float, float> solve({2, 0, 3, 0, 0});
    solve.step_emulated(regime, deq_test::device_with(232448, 2));
    CHECK(solve.counter(0)[deq::kStatus] == deq::kConverged);
    CHECK(solve.active[0] == 0);
  }
}

TEST(gpu_anderson_step_refuses_counters_that_cannot_be) {
  for (const char* regime : deq_test::kRegimes) {
    for (const deq::Counter column : {deq::kCount, deq::kSteps}) {
      Solve<float, float> solve({1, 40, 3, 40, 40});
      solve.counter(0)[column] = -1;
      bool refused = false;
      try {
        solve.step_emulated(regime, deq_test::device_with(232448, 2));
      } catch (const std::runtime_error&) {
        refused = true;
      }
      CHECK(refused);
    }
  }
}

}  // namespace
