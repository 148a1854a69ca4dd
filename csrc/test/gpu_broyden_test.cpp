// The bodies of the Broyden kernels, run by the block emulator in every regime.
#include "cuda/broyden.h"

#include <array>

#include "test/gpu_arrays.h"
#include "test/gpu_launch.h"

namespace {

using deq_test::Array;
using deq_test::Order;
using Vector = std::vector<double>;

constexpr int64_t kMaxSteps = 8;

struct Setup {
  int64_t batch;
  int64_t dim;
  int64_t capacity;
  int64_t direction_stride;
  double size = 1.0;   // of the numbers that the problem is about
  bool steep = false;  // a map on which plain steps grow
  deq::StepOptions options = {
      0.9, 0.8, true, false, false, 0, {1e-8, 1e8, 96}, {1e-9, 0.0, kMaxSteps, 0, 1e6, 1}};
};

// Everything a solve works on.
template <typename state_t, typename history_t>
struct Solve {
  Setup setup;
  Array<state_t> f_z;
  Array<state_t> z;
  Array<state_t> best_z;
  Array<history_t> directions;
  Vector algebra;
  Vector record;
  std::vector<int64_t> counters;
  std::vector<int64_t> active;

  explicit Solve(const Setup& s)
      : setup(s),
        f_z(s.batch, 1, s.dim, s.dim + 3),
        z(s.batch, 1, s.dim, s.dim),
        best_z(s.batch, 1, s.dim, s.dim),
        directions(s.batch, s.capacity, s.dim, s.direction_stride),
        algebra(static_cast<size_t>(s.batch * deq::ProductForm::table_size(s.capacity)),
                std::nan("")),
        record(static_cast<size_t>(s.batch * (deq::kNormColumns + kMaxSteps)), std::nan("")),
        counters(static_cast<size_t>(s.batch * deq::kCounterColumns), 0),
        active{s.batch} {
    for (int64_t sample = 0; sample < s.batch; ++sample) {
      z.set_random(sample, 0, static_cast<unsigned>(sample));
      for (int64_t i = 0; i < s.dim; ++i) {
        z.set(sample, 0, i, s.size * z.at(sample, 0, i));
      }
    }
  }

  int64_t* counter(int64_t sample) { return counters.data() + sample * deq::kCounterColumns; }
  deq::ProductForm form(int64_t sample) {
    return {algebra.data() + sample * deq::ProductForm::table_size(setup.capacity), setup.capacity};
  }

  // An elementwise map whose slopes run from -0.9 to 0.6; a steep one goes down to -15.
  double map(int64_t i, double z_i) const {
    const double slope = -0.9 + 1.5 * static_cast<double>(i % 101) / 100.0;
    return setup.steep ? 0.3 - 5.0 * z_i * z_i * z_i : 0.3 + slope * std::sin(z_i);
  }
  void evaluate() {
    for (int64_t sample = 0; sample < setup.batch; ++sample) {
      for (int64_t i = 0; i < setup.dim; ++i) {
        f_z.set(sample, 0, i, setup.size * map(i, z.at(sample, 0, i) / setup.size));
      }
    }
  }

  void fill_f(int64_t sample, double value) {
    for (int64_t i = 0; i < setup.dim; ++i) {
      f_z.set(sample, 0, i, value);
    }
  }

  deq::BroydenStep<state_t, history_t> op() {
    return {f_z.values.data(),
            f_z.stride,
            z.values.data(),
            best_z.values.data(),
            {directions.values.data(), setup.capacity * directions.stride, directions.stride,
             directions.aligned(), algebra.data(), setup.capacity},
            record.data(),
            counters.data(),
            active.data(),
            setup.dim,
            setup.options};
  }

  void step_emulated(const char* regime, const deq::GpuDevice& device,
                     Order order = Order::kForwards) {
    const deq::GpuDemand demand =
        deq::broyden_step_demand(setup.batch, setup.dim, setup.capacity, sizeof(history_t));
    const deq::GpuPlan plan = deq::plan_gpu(demand, device, regime);
    CHECK(*regime == '\0' || std::string(deq::regime_name(plan.regime)) == regime);
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
    const deq::StepOptions& options = setup.options;
    const bool dots = !deq::only_judges(options, counter(sample));
    const int64_t k = dots ? counter(sample)[deq::kCount] : 0;
    Vector r;
    deq::StepNorms norms = {};
    for (int64_t i = 0; i < setup.dim; ++i) {
      const double f = f_z.at(sample, 0, i);
      r.push_back(f - z.at(sample, 0, i));
      norms.residual.sum += r.back() * r.back();
      norms.f.sum += f * f;
    }
    double* const norms_of_sample = record.data() + sample * (deq::kNormColumns + kMaxSteps);
    const double scale = norms_of_sample[deq::kDirectionScale];
    Vector q(static_cast<size_t>(setup.capacity) + 1);
    Vector column(q.size());
    for (int64_t j = 0; j < k; ++j) {
      for (int64_t i = 0; i < setup.dim; ++i) {
        q[j] += directions.at(sample, j, i) * (scale * r[i]);
        column[j] += directions.at(sample, j, i) * directions.at(sample, k - 1, i);
      }
    }
    deq::StepDecision decision;
    deq::conclude_step(deq::OneLane(), options, form(sample), setup.dim, norms, q.data(),
                       column.data(), norms_of_sample, counter(sample), &decision);
    active[0] -= counter(sample)[deq::kStatus] != deq::kRunning ? 1 : 0;
    for (int64_t i = 0; i < setup.dim; ++i) {
      if (decision.restore) {
        z.set(sample, 0, i, best_z.at(sample, 0, i));
        continue;
      }
      if (decision.keep) {
        best_z.set(sample, 0, i, z.at(sample, 0, i));
      }
      if (decision.backtrack) {
        z.set(sample, 0, i,
              z.at(sample, 0, i) + decision.scale * directions.at(sample, decision.count - 1, i));
      }
      if (decision.extend) {
        double p = decision.scale * r[i];
        for (int64_t j = 0; j < decision.count; ++j) {
          p += q[j] * directions.at(sample, j, i);
        }
        for (int64_t j = 1; decision.drop && j < decision.count; ++j) {
          directions.set(sample, j - 1, i, directions.at(sample, j, i));
        }
        directions.set(sample, decision.slot(), i, p);
      }
      if (decision.advance) {
        z.set(sample, 0, i,
              z.at(sample, 0, i) +
                  decision.step(options.damping) * directions.at(sample, decision.slot(), i));
      }
    }
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
      double* const own = out.data() + sample * (deq::kNormColumns + kMaxSteps);
      own[deq::kGamma] *= setup.size;
      own[deq::kDirectionScale] *= setup.size * setup.size;
    }
    return out;
  }

  // Tables aside, which need a tolerance per row: they hold squares of very different vectors.
  void check_near(const Solve& expected) const {
    const double tolerance = deq_test::tolerance_of<state_t, history_t>();
    CHECK(counters == expected.counters);
    CHECK(active == expected.active);
    CHECK(deq_test::near(sized_record(), expected.sized_record(), tolerance));
    CHECK(deq_test::near(widened(z.values), widened(expected.z.values), tolerance));
    CHECK(deq_test::near(widened(best_z.values), widened(expected.best_z.values), tolerance));
    CHECK(
        deq_test::near(widened(directions.values), widened(expected.directions.values), tolerance));
    CHECK(deq_test::near(algebra, expected.algebra, tolerance));
  }

  void check_same(const Solve& other) const {
    CHECK(counters == other.counters);
    CHECK(active == other.active);
    CHECK(deq_test::same_bits(record, other.record));
    CHECK(deq_test::same_bits(algebra, other.algebra));
    CHECK(deq_test::same_bits(z.values, other.z.values));
    CHECK(deq_test::same_bits(best_z.values, other.best_z.values));
    CHECK(deq_test::same_bits(directions.values, other.directions.values));
  }
};

// Some steps in every regime: each close to the plain step from the same state, and the regimes
// equal to the bit. Sample 1 is frozen from the start; sample 2 turns NaN and goes back to its best
// iterate; the history is full and restarts.
// Returns how often a step was shortened.
template <typename state_t, typename history_t>
int64_t steps_in_every_regime(const Setup& setup, const deq::GpuDevice& device) {
  int64_t shortened = 0;
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
    shortened += solves[0].counter(0)[deq::kBacktracks] > 0 ? 1 : 0;
  }
  CHECK(solves[0].active[0] == 0);
  CHECK(solves[0].counter(0)[deq::kStatus] == deq::kMaxSteps ||
        solves[0].counter(0)[deq::kStatus] == deq::kConverged);
  const bool shortens = setup.options.max_backtracks > 0;
  CHECK(solves[0].counter(2)[deq::kRejections] == (shortens ? 0 : 1));
  CHECK(solves[0].counter(0)[deq::kEstimates] == (setup.options.estimate_gamma ? 1 : 0));
  CHECK(setup.options.estimate_gamma != (solves[0].record[deq::kGamma] == 0.8));
  CHECK((setup.size == 1.0) == (solves[0].record[deq::kDirectionScale] == 1.0));
  if (setup.options.drop_oldest && solves[0].counter(0)[deq::kStatus] == deq::kMaxSteps) {
    CHECK(solves[0].counter(0)[deq::kCount] == setup.capacity);
  }
  return shortened;
}

TEST(gpu_broyden_steps_on_odd_sizes) {
  const deq::GpuDevice device = deq_test::device_with(232448, 16);
  for (const int64_t dim : {1, 3, 250, 2047, 2048, 2049, 4100, 9001}) {
    steps_in_every_regime<float, float>({3, dim, 4, deq::round_up(dim, 4)}, device);
  }
}

// Every option alone, and all of them, on numbers of ordinary and of extreme size.
template <typename state_t, typename history_t>
void options_in_every_regime(Setup setup, const deq::GpuDevice& device, double size) {
  Setup dropping = setup;
  dropping.options.drop_oldest = true;
  CHECK((steps_in_every_regime<state_t, history_t>(dropping, device)) == 0);
  Setup estimating = setup;
  estimating.options.estimate_gamma = true;
  CHECK((steps_in_every_regime<state_t, history_t>(estimating, device)) == 0);
  Setup searching = setup;
  searching.steep = true;
  searching.options.max_backtracks = 2;
  CHECK((steps_in_every_regime<state_t, history_t>(searching, device)) > 0);
  Setup extreme = setup;
  extreme.size = size;
  CHECK((steps_in_every_regime<state_t, history_t>(extreme, device)) == 0);
  extreme.steep = true;
  extreme.options.drop_oldest = true;
  extreme.options.estimate_gamma = true;
  extreme.options.max_backtracks = 2;
  CHECK((steps_in_every_regime<state_t, history_t>(extreme, device)) > 0);
}

TEST(gpu_broyden_steps_with_every_option) {
  const deq::GpuDevice device = deq_test::device_with(232448, 4);
  for (const int64_t capacity : {2, 3, 5}) {
    options_in_every_regime<float, float>({3, 2117, capacity, 2120}, device, 0x1p-100);
    options_in_every_regime<float, float>({3, 70, capacity, 72}, device, 0x1p100);
  }
  options_in_every_regime<float, deq::bfloat16>({3, 4099, 3, 4100}, device, 0x1p-100);
  options_in_every_regime<deq::bfloat16, deq::bfloat16>({3, 257, 3, 264}, device, 0x1p90);
  options_in_every_regime<double, float>({3, 300, 4, 300}, device, 0x1p-90);
}

TEST(gpu_broyden_steps_that_drop_rows_of_which_some_are_on_chip) {
  Setup setup = {3, 4100, 4, 4104};
  setup.options.drop_oldest = true;
  setup.options.limits.max_steps = kMaxSteps;
  const deq::GpuDemand demand = deq::broyden_step_demand(3, 4100, 4, sizeof(deq::bfloat16));
  const int64_t bytes = deq::shared_layout(demand, 3, 1).bytes;
  const deq::GpuDevice device = deq_test::device_with(bytes, 2);
  steps_in_every_regime<float, deq::bfloat16>(setup, device);
}

TEST(gpu_broyden_steps_with_rows_off_16_bytes) {
  const deq::GpuDevice device = deq_test::device_with(232448, 16);
  steps_in_every_regime<float, float>({3, 2051, 4, 2053}, device);
  steps_in_every_regime<float, deq::bfloat16>({3, 2051, 4, 2051}, device);
}

TEST(gpu_broyden_steps_in_every_type) {
  const deq::GpuDevice device = deq_test::device_with(232448, 4);
  const Setup setup = {3, 2117, 3, 2120};
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

TEST(gpu_broyden_steps_that_keep_some_rows_on_chip) {
  // Room for 4 of 7 rows in the largest block.
  const Setup setup = {3, 4100, 7, 4104};
  const deq::GpuDemand demand = deq::broyden_step_demand(3, 4100, 7, sizeof(float));
  const int64_t bytes = deq::shared_layout(demand, 3, 5).bytes;
  const deq::GpuDevice device = deq_test::device_with(bytes, 2);
  CHECK(deq::plan_gpu(demand, device, "block").kept_rows == 4);
  steps_in_every_regime<float, float>(setup, device);
}

TEST(gpu_broyden_steps_whose_table_stays_in_device_memory) {
  const Setup setup = {3, 70, 9, 72};
  const deq::GpuDemand demand = deq::broyden_step_demand(3, 70, 9, sizeof(float));
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

TEST(gpu_broyden_more_rows_than_one_flush_and_one_warp_take) {
  const int64_t capacity = deq::kRowsPerFlush + 5;
  Setup setup = {1, 40, capacity, 40};
  Solve<float, float> solve(setup);
  for (int64_t j = 0; j < capacity; ++j) {
    solve.directions.set_random(0, j, static_cast<unsigned>(100 + j));
  }
  // A history that is nearly full, with its Gram matrix and factors.
  const int64_t count = capacity - 1;
  for (int64_t j = 0; j + 1 < count; ++j) {
    for (int64_t i = 0; i + 1 < count; ++i) {
      double sum = 0.0;
      for (int64_t n = 0; n < setup.dim; ++n) {
        sum += solve.directions.at(0, i, n) * solve.directions.at(0, j, n);
      }
      solve.form(0).row(i)[j] = sum;
    }
    solve.form(0).step(j) = 0.9;
    solve.form(0).weight(j) = 1.0 / solve.form(0).gram(j, j);
  }
  solve.form(0).step(count - 1) = 0.9;
  solve.counter(0)[deq::kCount] = count;
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
    // 37 dots of 40 random numbers leave few digits in a direction.
    CHECK(deq_test::near(Solve<float, float>::widened(emulated.z.values),
                         Solve<float, float>::widened(plain.z.values), 1e-3));
    CHECK(deq_test::near(emulated.algebra, plain.algebra, 1e-3));
  }
}

TEST(gpu_broyden_results_do_not_depend_on_the_order_of_threads) {
  const deq::GpuDevice device = deq_test::device_with(232448, 4);
  const Setup setup = {2, 4500, 3, 4500};
  for (const char* regime : deq_test::kRegimes) {
    std::vector<Solve<float, float>> solves(3, Solve<float, float>(setup));
    const Order orders[] = {Order::kForwards, Order::kBackwards, Order::kInterleaved};
    for (int64_t step = 0; step < 4; ++step) {
      for (size_t i = 0; i < solves.size(); ++i) {
        solves[i].evaluate();
        solves[i].step_emulated(regime, device, orders[i]);
      }
      solves[1].check_same(solves[0]);
      solves[2].check_same(solves[0]);
    }
  }
}

TEST(gpu_broyden_step_without_elements) {
  for (const char* regime : {"block", "grid"}) {
    Solve<float, float> solve({2, 0, 3, 0});
    solve.step_emulated(regime, deq_test::device_with(232448, 2));
    CHECK(solve.counter(0)[deq::kStatus] == deq::kConverged);
    CHECK(solve.active[0] == 0);
  }
}

TEST(gpu_broyden_step_refuses_counters_that_cannot_be) {
  for (const char* regime : deq_test::kRegimes) {
    Solve<float, float> solve({1, 40, 3, 40});
    solve.counter(0)[deq::kCount] = 4;
    bool refused = false;
    try {
      solve.step_emulated(regime, deq_test::device_with(232448, 2));
    } catch (const std::runtime_error&) {
      refused = true;
    }
    CHECK(refused);
  }
}

// Products against factor after factor, in every regime and both directions.
template <typename state_t, typename history_t>
void products(int64_t dim, int64_t stride, int64_t columns) {
  constexpr int64_t kBatch = 3;
  constexpr int64_t kCapacity = 4;
  const double step = 0.7;
  Array<history_t> directions(kBatch, kCapacity, dim, stride);
  Array<state_t> x(kBatch, columns, dim, dim);
  Vector algebra(static_cast<size_t>(kBatch * deq::ProductForm::table_size(kCapacity)),
                 std::nan(""));
  const std::vector<int64_t> rank = {0, 1, 3};
  for (int64_t sample = 0; sample < kBatch; ++sample) {
    const deq::ProductForm form = {
        algebra.data() + sample * deq::ProductForm::table_size(kCapacity), kCapacity};
    for (int64_t j = 0; j <= rank[sample] && rank[sample] > 0; ++j) {
      directions.set_random(sample, j, static_cast<unsigned>(10 * sample + j));
    }
    for (int64_t j = 0; j < rank[sample]; ++j) {
      for (int64_t i = 0; i < rank[sample]; ++i) {
        double sum = 0.0;
        for (int64_t n = 0; n < dim; ++n) {
          sum += directions.at(sample, i, n) * directions.at(sample, j, n);
        }
        form.row(i)[j] = sum;
      }
      form.step(j) = step;
      form.weight(j) = 1.0 / form.gram(j, j);
    }
    for (int64_t c = 0; c < columns; ++c) {
      x.set_random(sample, c, static_cast<unsigned>(100 + sample * columns + c));
    }
  }
  for (const bool transpose : {false, true}) {
    Vector expected;
    for (int64_t sample = 0; sample < kBatch; ++sample) {
      for (int64_t c = 0; c < columns; ++c) {
        Vector y;
        for (int64_t i = 0; i < dim; ++i) {
          y.push_back((transpose ? 1.0 : -0.5) * x.at(sample, c, i));
        }
        for (int64_t n = 0; n < rank[sample]; ++n) {
          const int64_t j = transpose ? rank[sample] - 1 - n : n;
          auto u = [&](int64_t i) {
            return directions.at(sample, j + 1, i) + (step - 1.0) * directions.at(sample, j, i);
          };
          double dot = 0.0;
          double norm_sq = 0.0;
          for (int64_t i = 0; i < dim; ++i) {
            const double p = directions.at(sample, j, i);
            dot += (transpose ? u(i) : p) * y[i];
            norm_sq += p * p;
          }
          for (int64_t i = 0; i < dim; ++i) {
            y[i] += dot / norm_sq * (transpose ? directions.at(sample, j, i) : u(i));
          }
        }
        for (double value : y) {
          expected.push_back((transpose ? -0.5 : 1.0) * value);
        }
      }
    }
    std::vector<state_t> first;
    for (const char* regime : deq_test::kRegimes) {
      Array<state_t> y(kBatch, columns, dim, dim);
      const deq::BroydenProduct<state_t, history_t> op = {
          x.values.data(),
          y.values.data(),
          {directions.values.data(), kCapacity * stride, stride, directions.aligned(),
           algebra.data(), kCapacity},
          rank.data(),
          columns,
          dim,
          -0.5,
          transpose};
      const deq::GpuDemand demand =
          deq::product_demand(kBatch * columns, dim, kCapacity, sizeof(history_t),
                              deq::ProductForm::table_size(kCapacity));
      deq_test::launch(op, demand, deq::plan_gpu(demand, deq_test::device_with(232448, 2), regime),
                       Order::kInterleaved);
      const double tolerance = deq_test::kTolerance<state_t>;
      CHECK(deq_test::near(Solve<state_t, state_t>::widened(y.values), expected, tolerance));
      if (first.empty()) {
        first = y.values;
      }
      CHECK(deq_test::same_bits(y.values, first));
    }
  }
}

TEST(gpu_broyden_products_refuse_ranks_that_cannot_be) {
  for (const int64_t rank : {int64_t(-1), int64_t(2), INT64_MAX, INT64_MIN}) {
    Array<float> directions(1, 2, 8, 8);
    Array<float> x(1, 1, 8, 8);
    Array<float> y(1, 1, 8, 8);
    Vector algebra(static_cast<size_t>(deq::ProductForm::table_size(2)));
    const deq::BroydenProduct<float, float> op = {
        x.values.data(),
        y.values.data(),
        {directions.values.data(), 16, 8, directions.aligned(), algebra.data(), 2},
        &rank,
        1,
        8,
        -1.0,
        false};
    const deq::GpuDemand demand =
        deq::product_demand(1, 8, 2, sizeof(float), deq::ProductForm::table_size(2));
    for (const char* regime : deq_test::kRegimes) {
      bool refused = false;
      try {
        deq_test::launch(op, demand,
                         deq::plan_gpu(demand, deq_test::device_with(232448, 2), regime),
                         Order::kInterleaved);
      } catch (const std::runtime_error&) {
        refused = true;
      }
      CHECK(refused);
    }
  }
}

TEST(gpu_broyden_products) {
  products<float, float>(2051, 2052, 2);
  products<float, float>(7, 7, 1);
  products<double, double>(33, 34, 1);
  products<float, deq::bfloat16>(2100, 2104, 1);
  products<deq::bfloat16, deq::bfloat16>(4099, 4104, 1);
  products<deq::float16, float>(130, 132, 3);
}

}  // namespace
