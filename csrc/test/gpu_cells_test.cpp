// The bodies of the kernels of structured cells, run by the block emulator in every regime.
#include <limits>

#include "test/gpu_cells_problem.h"
#include "test/plain_cell_steps.h"

namespace {

using deq::Activation;
using deq::CellPlan;
using deq::GpuDevice;
using deq::kAloneRows;
using deq::NormKind;
using deq_test::Cell;
using deq_test::CellOptions;
using deq_test::Entries;
using deq_test::Order;
using deq_test::PlainSteps;
using deq_test::WeightLayout;

// A ragged batch: several tiles of which the last is short, no rows, one row, part of a tile.
const std::vector<int64_t> kSizes = {9, 0, 70, 1, 0, 33};
constexpr int64_t kShared = 232448;

// A way to run the same problem.
struct Way {
  const char* regime;
  GpuDevice device;
};

// On few multiprocessors, so that blocks have several samples and grids are small. With little
// shared memory no row stays on chip, and a large weight does not either.
const Way kWays[] = {
    {"block", {2, kShared, 1}}, {"cluster", {4, kShared, 4}}, {"grid", {3, kShared, 1}},
    {"block", {4, 26000, 1}},   {"cluster", {4, 26000, 2}},   {"grid", {2, 26000, 1}},
};

template <typename state_t>
CellPlan plan_of(const Cell<state_t>& cell, const Way& way) {
  const CellPlan plan = deq::plan_cells(cell.demand(), way.device, way.regime);
  CHECK(plan.shared.bytes <= way.device.shared_bytes);
  CHECK(!cell.grouped() || std::strcmp(deq::regime_name(plan.regime), way.regime) == 0);
  return plan;
}

// Every sample against plain loops that take as many steps as it says it took; returns how many
// steps were taken back.
template <typename state_t>
int64_t check_against_loops(const Cell<state_t>& before, Cell<state_t>& after) {
  int64_t taken_back = 0;
  const CellOptions& options = after.options;
  const double tolerance = deq_test::kTolerance<deq::accumulate_t<state_t>>;
  CHECK(after.active[0] == 0);
  for (int64_t sample = 0; sample < after.samples; ++sample) {
    std::vector<double> z = before.z_of(sample);
    const std::vector<double> actual = after.z_of(sample);
    std::vector<double> best = z;
    double smallest = HUGE_VAL;
    bool met = false;
    PlainSteps plain = {options.accelerate, options.damping};
    const int64_t steps = after.counter(sample, deq::kSteps);
    CHECK(1 <= steps && steps <= options.max_steps);
    for (int64_t step = 0; step < steps; ++step) {
      const std::vector<double> f = after.evaluate(sample, z);
      CHECK(!met || options.fixed_steps);
      // Norms of what is judged together: all elements, or each row.
      met = true;
      double norm = 0.0;
      const size_t part = options.norm == NormKind::kRows ? static_cast<size_t>(options.dim)
                                                          : std::max(f.size(), size_t(1));
      for (size_t first = 0; first < f.size(); first += part) {
        double norms[2] = {};
        for (size_t i = first; i < first + part; ++i) {
          const double magnitudes[2] = {std::fabs(f[i] - z[i]), std::fabs(f[i])};
          for (int n = 0; n < 2; ++n) {
            norms[n] = options.norm == NormKind::kMax ? std::max(norms[n], magnitudes[n])
                                                      : std::hypot(norms[n], magnitudes[n]);
          }
        }
        norm = std::max(norm, norms[0]);
        met = met && norms[0] <= options.atol + options.rtol * norms[1];
      }
      CHECK_NEAR(after.trace(sample, step), norm, 4 * tolerance);
      if (norm < smallest || met) {
        smallest = norm;
        best = z;
      }
      z = plain.from(z, f, norm);
    }
    taken_back += plain.taken_back;
    CHECK(deq_test::near(actual, options.fixed_steps ? z : best, deq_test::kTolerance<state_t>));
    CHECK(after.counter(sample, deq::kStatus) == (met ? deq::kConverged : deq::kMaxSteps));
    CHECK(met || steps == options.max_steps);
  }
  return taken_back;
}

// In every way, against plain loops and each other to the bit.
template <typename state_t>
int64_t check_cell(const CellOptions& options) {
  int64_t taken_back = 0;
  const Cell<state_t> start(options);
  Cell<state_t> first = start;
  bool compared = false;
  for (const Way& way : kWays) {
    if (!start.grouped() && std::strcmp(way.regime, "block") != 0) {
      continue;
    }
    Cell<state_t> cell = start;
    cell.run(plan_of(cell, way), Order::kForwards);
    if (!compared) {
      taken_back = check_against_loops(start, cell);
      first = cell;
      compared = true;
    }
    CHECK(deq_test::same_results(cell, first));
  }
  return taken_back;
}

TEST(gpu_cells_of_graphs) {
  int variant = 0;
  for (const int64_t dim : {1, 3, 40, 64, 100}) {
    CellOptions options;
    options.sizes = kSizes;
    options.dim = dim;
    options.scaled = variant % 2 == 0;
    options.layout = static_cast<WeightLayout>(variant % 3);
    options.entries = variant % 2 == 0 ? Entries::kDirected : Entries::kSymmetric;
    options.norm = static_cast<NormKind>(variant % 3);
    options.damping = variant % 3 == 1 ? 0.7 : 1.0;
    check_cell<float>(options);
    options.norm = static_cast<NormKind>((variant + 1) % 3);
    options.layout = static_cast<WeightLayout>((variant + 1) % 3);
    check_cell<double>(options);
    ++variant;
  }
}

// All rows of what has converged meet the relative tolerance for themselves.
void check_rows(Cell<double>& cell) {
  for (int64_t sample = 0; sample < cell.samples; ++sample) {
    CHECK(cell.counter(sample, deq::kStatus) == deq::kConverged);
    const std::vector<double> z = cell.z_of(sample);
    const std::vector<double> f = cell.evaluate(sample, z);
    const size_t dim = static_cast<size_t>(cell.options.dim);
    for (size_t first = 0; first < z.size(); first += dim) {
      double norms[2] = {};
      for (size_t i = first; i < first + dim; ++i) {
        norms[0] = std::hypot(norms[0], f[i] - z[i]);
        norms[1] = std::hypot(norms[1], f[i]);
      }
      CHECK(norms[0] <= 1.001 * cell.options.rtol * norms[1] + 1e-15);
    }
  }
}

// Rows that fade out meet a relative tolerance for themselves, each in a later step than the
// largest ones, accelerated or not.
TEST(gpu_cells_of_graphs_by_rows) {
  for (const int64_t dim : {3, 40}) {
    for (const bool accelerate : {false, true}) {
      CellOptions options;
      options.sizes = kSizes;
      options.dim = dim;
      options.activation = Activation::kRelu;
      options.fading = 0.7;
      options.accelerate = accelerate;
      options.max_steps = 90;
      options.rtol = 1e-3;
      options.atol = 0.0;
      int64_t steps[2] = {};
      for (const NormKind norm : {NormKind::kTwo, NormKind::kRows}) {
        options.norm = norm;
        if (!accelerate) {
          check_cell<double>(options);
        }
        Cell<double> first(options);
        first.run(plan_of(first, kWays[0]), Order::kForwards);
        for (const Way& way : kWays) {
          Cell<double> cell(options);
          cell.run(plan_of(cell, way), Order::kForwards);
          CHECK(deq_test::same_results(cell, first));
        }
        if (norm == NormKind::kRows) {
          check_rows(first);
        }
        steps[norm == NormKind::kRows] = first.counter(2, deq::kSteps);
      }
      CHECK(steps[0] < steps[1]);
      CHECK(steps[1] < options.max_steps);
    }
  }
}

TEST(gpu_cells_of_graphs_in_16_bits) {
  CellOptions options;
  options.sizes = kSizes;
  options.dim = 40;
  check_cell<deq::float16>(options);
  options.layout = WeightLayout::kColumns;
  options.scaled = true;
  options.dim = 99;
  check_cell<deq::bfloat16>(options);
}

TEST(gpu_cells_of_groups_without_entries) {
  CellOptions options;
  options.sizes = kSizes;
  options.dim = 33;
  options.entries = Entries::kNone;
  check_cell<float>(options);
}

TEST(gpu_cells_of_rows) {
  int variant = 0;
  for (const int64_t dim : {1, 3, 40, 64, 100, 300}) {
    CellOptions options;
    options.rows = variant % 2 == 0 ? 37 : 70;
    options.dim = dim;
    options.entries = Entries::kNone;
    options.scaled = variant % 2 == 1;
    options.layout = static_cast<WeightLayout>(variant % 3);
    options.norm = variant % 2 == 0 ? NormKind::kMax : NormKind::kTwo;
    options.damping = variant % 3 == 1 ? 0.7 : 1.0;
    check_cell<float>(options);
    options.rows = 5;
    check_cell<double>(options);
    ++variant;
  }
  CellOptions options;
  options.rows = 21;
  options.dim = 30;
  options.entries = Entries::kNone;
  check_cell<deq::float16>(options);
  check_cell<deq::bfloat16>(options);
}

// A cell that starts at its solution: what float64 finds there is a bias rounded to float32. Terms
// of one sign make sums of which a single chain would lose the more, the longer it is.
Cell<float> solved_cell(bool grouped) {
  CellOptions options;
  options.sizes = grouped ? std::vector<int64_t>{3, 18} : std::vector<int64_t>{};
  options.rows = grouped ? 0 : 6;
  options.entries = grouped ? Entries::kSymmetric : Entries::kNone;
  options.dim = 1030;
  options.activation = Activation::kIdentity;
  options.norm = NormKind::kMax;
  options.gain = 0.9;
  options.max_steps = 1;
  Cell<float> cell(options);
  for (int64_t i = 0; i < options.dim; ++i) {
    for (int64_t k = 0; k < options.dim; ++k) {
      cell.weight.set(0, i, k, std::fabs(cell.weight.at(0, i, k)));
    }
    for (int64_t row = 0; row < cell.rows; ++row) {
      cell.bias.set(0, row, i, 0.0);
    }
  }
  for (float& z : cell.z) {
    z = 1.0f + std::fabs(z);
  }
  for (int64_t sample = 0; sample < cell.samples; ++sample) {
    const std::vector<double> z = cell.z_of(sample);
    const std::vector<double> product = cell.evaluate(sample, z);
    for (int64_t i = 0; i < static_cast<int64_t>(z.size()); ++i) {
      const auto at = static_cast<size_t>(i);
      const int64_t row = cell.begin_of(sample) + i / options.dim;
      cell.bias.set(0, row, i % options.dim, z[at] - product[at]);
    }
  }
  return cell;
}

TEST(gpu_cells_round_long_products_no_more_often_than_short_ones) {
  for (const bool grouped : {true, false}) {
    const Cell<float> start = solved_cell(grouped);
    for (const Way& way : kWays) {
      if (!grouped && std::strcmp(way.regime, "block") != 0) {
        continue;
      }
      Cell<float> cell = start;
      cell.run(plan_of(cell, way), Order::kForwards);
      for (int64_t sample = 0; sample < cell.samples; ++sample) {
        const std::vector<double> z = cell.z_of(sample);
        CHECK(cell.trace(sample, 0) <= 2e-7 * *std::max_element(z.begin(), z.end()));
      }
    }
  }
}

TEST(gpu_cells_with_every_activation) {
  for (int64_t number = 0; number < deq::kActivations; ++number) {
    CellOptions options;
    options.activation = static_cast<Activation>(number);
    options.dim = 7;
    options.max_steps = 3;
    options.rows = 20;
    options.entries = Entries::kNone;
    check_cell<float>(options);
    check_cell<double>(options);
  }
}

TEST(gpu_cells_with_a_fixed_number_of_steps) {
  CellOptions options;
  options.fixed_steps = true;
  options.sizes = kSizes;
  options.dim = 6;
  options.damping = 0.6;
  for (const double atol : {1e-9, 10.0}) {
    options.atol = atol;
    check_cell<float>(options);
    CellOptions rows = options;
    rows.sizes = {};
    rows.rows = 19;
    rows.entries = Entries::kNone;
    check_cell<float>(rows);
  }
}

TEST(gpu_cells_with_accelerated_steps) {
  for (const NormKind norm : {NormKind::kTwo, NormKind::kMax}) {
    for (const bool grouped : {true, false}) {
      CellOptions options;
      options.accelerate = true;
      options.norm = norm;
      options.sizes = grouped ? kSizes : std::vector<int64_t>{};
      options.rows = grouped ? 0 : 37;
      options.entries = grouped ? Entries::kDirected : Entries::kNone;
      options.dim = 40;
      options.scaled = true;
      options.damping = grouped ? 0.8 : 1.0;
      check_cell<float>(options);
      check_cell<deq::bfloat16>(options);
      // No contraction, so that steps are taken back.
      options.gain = 60.0;
      options.max_steps = 9;
      CHECK(check_cell<double>(options) > 0);
    }
  }
}

// The mean over both neighbours of a ring, times 0.99: S V is symmetric, its spectral radius 0.99.
TEST(gpu_cells_take_few_accelerated_steps_of_a_symmetric_map) {
  constexpr int64_t kNodes = 150;
  CellOptions options;
  options.accelerate = true;
  options.sizes = {kNodes};
  options.entries = Entries::kSymmetric;
  options.activation = Activation::kIdentity;
  options.dim = 2;
  options.max_steps = 100;
  options.rtol = 1e-8;
  options.atol = 0.0;
  Cell<double> start(options);
  start.col.clear();
  start.values.assign(2 * kNodes, 0.5);
  for (int64_t row = 0; row < kNodes; ++row) {
    start.crow[static_cast<size_t>(row + 1)] = 2 * (row + 1);
    start.col.push_back((row + kNodes - 1) % kNodes);
    start.col.push_back((row + 1) % kNodes);
  }
  for (int64_t i = 0; i < 4; ++i) {
    start.weight.set(0, i / 2, i % 2, i % 3 == 0 ? 0.99 : 0.0);
  }
  Cell<double> first = start;
  for (const Way& way : kWays) {
    Cell<double> cell = start;
    cell.run(plan_of(cell, way), Order::kForwards);
    CHECK(cell.counter(0, deq::kStatus) == deq::kConverged);
    CHECK(cell.counter(0, deq::kSteps) < options.max_steps);
    CHECK(deq_test::near(cell.evaluate(0, cell.z_of(0)), cell.z_of(0), 1e-7));
    first = &way == kWays ? cell : first;
    CHECK(deq_test::same_results(cell, first));
  }
}

// Products of four residuals leave the range of float64 where its squares do not: a linear map
// scaled by a power of two is solved in the same steps, to the bit.
TEST(gpu_cells_take_the_same_accelerated_steps_at_any_scale) {
  for (const bool grouped : {true, false}) {
    CellOptions options;
    options.accelerate = true;
    options.sizes = grouped ? std::vector<int64_t>{3, 20} : std::vector<int64_t>{};
    options.rows = grouped ? 0 : 9;
    options.entries = grouped ? Entries::kSymmetric : Entries::kNone;
    options.activation = Activation::kIdentity;
    options.dim = 9;
    options.gain = 0.9;
    options.max_steps = 12;
    options.rtol = 1e-8;
    options.atol = 0.0;
    const Cell<double> start(options);
    Cell<double> cell = start;
    cell.run(plan_of(cell, kWays[0]), Order::kForwards);
    for (const int exponent : {-400, 400}) {
      Cell<double> scaled = start;
      for (double& z : scaled.z) {
        z = std::ldexp(z, exponent);
      }
      for (double& b : scaled.bias.values) {
        b = std::ldexp(b, exponent);
      }
      scaled.run(plan_of(scaled, kWays[0]), Order::kForwards);
      CHECK(scaled.counters == cell.counters);
      for (double& z : scaled.z) {
        z = std::ldexp(z, -exponent);
      }
      CHECK(deq_test::same_bits(scaled.z, cell.z));
    }
  }
}

// The value of an activation by itself, near zero and far from it.
template <typename accum_t>
void check_activations(double relative) {
  for (int64_t number = 0; number < deq::kActivations; ++number) {
    const auto activation = static_cast<Activation>(number);
    for (const double x : {-80.0, -8.0, -1.5, -1e-3, -1e-7, 0.0, 1e-7, 1e-3, 0.4, 3.0, 80.0}) {
      const auto at = static_cast<accum_t>(x);
      const double expected = deq_test::activation_value(activation, static_cast<double>(at));
      const double scale = activation == Activation::kGelu ? std::fabs(x) : std::fabs(expected);
      const auto actual = static_cast<double>(deq::activated(activation, at));
      CHECK(std::fabs(actual - expected) <= relative * scale);
    }
    CHECK(std::isnan(deq::activated(activation, std::numeric_limits<accum_t>::quiet_NaN())));
  }
}

TEST(gpu_cell_activations) {
  check_activations<float>(4e-7);
  check_activations<double>(1e-15);
}

// A sample that is not finite, and one that does not run, against the same batch without them.
void check_neighbours(CellOptions options, int64_t frozen, int64_t broken) {
  for (const Way& way : kWays) {
    const Cell<float> start(options);
    Cell<float> healthy = start;
    healthy.run(plan_of(start, way), Order::kForwards);
    Cell<float> cell = start;
    cell.counter(frozen, deq::kStatus) = deq::kStalled;
    cell.active[0] -= 1;
    cell.bias.set(0, cell.begin_of(broken), 0, std::nan(""));
    cell.run(plan_of(cell, way), Order::kForwards);
    CHECK(cell.active[0] == 0);
    const int64_t width = deq::kNormColumns + options.max_steps;
    for (int64_t sample = 0; sample < cell.samples; ++sample) {
      const bool untouched = sample == frozen;
      const Cell<float>& expected = untouched || sample == broken ? start : healthy;
      // What is kept of a sample whose first evaluation is not finite is its start.
      for (int64_t row = cell.begin_of(sample); row < cell.end_of(sample); ++row) {
        for (int64_t i = 0; i < options.dim; ++i) {
          CHECK(cell.z_at(row, i) == expected.z_at(row, i));
        }
      }
      if (sample == broken) {
        CHECK(cell.counter(sample, deq::kStatus) == deq::kDiverged);
        CHECK(cell.counter(sample, deq::kSteps) == 1);
        CHECK(std::isnan(cell.trace(sample, 0)));
        continue;
      }
      CHECK(cell.counter(sample, deq::kStatus) ==
            (untouched ? deq::kStalled : Cell<float>(healthy).counter(sample, deq::kStatus)));
      CHECK(std::memcmp(cell.record.data() + sample * width,
                        expected.record.data() + sample * width,
                        static_cast<size_t>(width) * sizeof(double)) == 0);
    }
  }
}

TEST(gpu_cells_leave_their_neighbours_alone) {
  for (const NormKind norm : {NormKind::kTwo, NormKind::kMax}) {
    CellOptions options;
    options.norm = norm;
    options.sizes = {20, 66, 5, 70};
    options.dim = 5;
    check_neighbours(options, 1, 2);
    check_neighbours(options, 0, 3);
    options.sizes = {};
    options.rows = 30;
    options.entries = Entries::kNone;
    check_neighbours(options, 4, 5);
  }
}

// The residual of the second evaluation is above that of the first: the first iterate is kept.
TEST(gpu_cells_keep_the_best_iterate) {
  for (const Way& way : kWays) {
    for (const bool grouped : {true, false}) {
      CellOptions options;
      options.sizes = grouped ? std::vector<int64_t>{3, 80} : std::vector<int64_t>{};
      options.rows = grouped ? 0 : 9;
      options.dim = 2;
      options.activation = Activation::kIdentity;
      options.entries = Entries::kNone;
      const Cell<double> start(options);
      Cell<double> cell = start;
      for (int64_t i = 0; i < 4; ++i) {
        cell.weight.set(0, i / 2, i % 2, i % 3 == 0 ? 1.5 : 0.0);
      }
      cell.run(plan_of(cell, way), Order::kForwards);
      CHECK(deq_test::same_bits(cell.z, start.z));
      for (int64_t sample = 0; sample < cell.samples; ++sample) {
        CHECK(cell.counter(sample, deq::kStatus) == deq::kMaxSteps);
        CHECK(cell.trace(sample, 1) > cell.trace(sample, 0));
      }
    }
  }
}

// Tables that tell of an evaluation with a residual that is never reached again.
TEST(gpu_cells_keep_an_iterate_of_before) {
  for (const bool accelerate : {false, true}) {
    for (const bool grouped : {true, false}) {
      CellOptions options;
      options.accelerate = accelerate;
      options.sizes = grouped ? std::vector<int64_t>{3, 80} : std::vector<int64_t>{};
      options.rows = grouped ? 0 : 9;
      options.dim = 4;
      options.entries = Entries::kNone;
      options.atol = 0.0;
      Cell<double> start(options);
      for (int64_t sample = 0; sample < start.samples; ++sample) {
        start.counter(sample, deq::kSteps) = 1;
        double* const norms =
            start.record.data() + sample * (deq::kNormColumns + options.max_steps);
        norms[deq::kFirstResidual] = norms[deq::kProgressResidual] = 1.0;
        norms[deq::kBestResidual] = 0.0;
      }
      for (const Way& way : kWays) {
        Cell<double> cell = start;
        cell.run(plan_of(cell, way), Order::kForwards);
        CHECK(deq_test::same_bits(cell.z, start.z));
        for (int64_t sample = 0; sample < cell.samples; ++sample) {
          CHECK(cell.counter(sample, deq::kStatus) == deq::kMaxSteps);
          CHECK(cell.counter(sample, deq::kSteps) == options.max_steps);
        }
      }
    }
  }
}

// The order in which threads run between two barriers changes nothing.
void check_orders(const CellOptions& options) {
  const Cell<float> start(options);
  for (const Way& way : kWays) {
    Cell<float> first = start;
    first.run(plan_of(start, way), Order::kForwards);
    for (const Order order : {Order::kBackwards, Order::kInterleaved, Order::kBlockByBlock}) {
      Cell<float> cell = start;
      cell.run(plan_of(start, way), order);
      CHECK(deq_test::same_results(cell, first));
    }
  }
}

TEST(gpu_cells_wait_for_each_other) {
  for (const bool fixed_steps : {false, true}) {
    CellOptions options;
    options.sizes = kSizes;
    options.dim = 37;
    options.max_steps = 4;
    options.fixed_steps = fixed_steps;
    check_orders(options);
    options.sizes = {};
    options.rows = 41;
    options.entries = Entries::kNone;
    check_orders(options);
  }
}

TEST(gpu_cells_wait_for_each_other_in_accelerated_steps) {
  CellOptions options;
  options.accelerate = true;
  options.gain = 60.0;
  options.sizes = kSizes;
  options.dim = 21;
  check_orders(options);
  options.sizes = {};
  options.rows = 41;
  options.entries = Entries::kNone;
  check_orders(options);
}

// More tiles than a warp has lanes, so that all warps add them up.
TEST(gpu_cells_of_a_large_graph) {
  for (const NormKind norm : {NormKind::kTwo, NormKind::kMax}) {
    CellOptions options;
    options.sizes = {1, 1100};
    options.dim = 2;
    options.max_steps = 3;
    options.norm = norm;
    check_cell<float>(options);
    check_orders(options);
  }
}

// Many samples of which few run: the large ones among them are found, and by all blocks alike.
TEST(gpu_cells_of_many_samples) {
  CellOptions options;
  options.sizes.assign(600, 1);
  for (const size_t large : {3, 255, 256, 257, 599}) {
    options.sizes[large] = kAloneRows + 1;
  }
  options.dim = 2;
  options.max_steps = 2;
  Cell<float> start(options);
  for (int64_t sample = 0; sample < start.samples; ++sample) {
    if (sample % 37 != 0 && options.sizes[static_cast<size_t>(sample)] == 1) {
      start.counter(sample, deq::kStatus) = deq::kStalled;
      --start.active[0];
    }
  }
  Cell<float> first = start;
  first.run(plan_of(start, kWays[0]), Order::kForwards);
  CHECK(first.active[0] == 0);
  for (const Order order : {Order::kForwards, Order::kBackwards}) {
    Cell<float> cell = start;
    cell.run(plan_of(start, {"grid", {3, kShared, 1}}), order);
    CHECK(deq_test::same_results(cell, first));
  }
}

// Runs `cell` after a change, and returns what the device says about it.
std::string refusal(const std::function<void(Cell<float>*)>& change) {
  CellOptions options;
  options.sizes = {4, 6};
  options.dim = 3;
  Cell<float> cell(options);
  change(&cell);
  try {
    cell.run(plan_of(cell, kWays[0]), Order::kForwards);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

TEST(gpu_cells_check_what_the_host_cannot_see) {
  const std::string col = "col must stay within the rows of its sample";
  CHECK(refusal([](Cell<float>*) {}).empty());
  CHECK(refusal([](Cell<float>* cell) { cell->col[0] = 4; }) == col);
  CHECK(refusal([](Cell<float>* cell) { cell->col.back() = 3; }) == col);
  CHECK(refusal([](Cell<float>* cell) { cell->col[1] = -1; }) == col);
  const std::string crow = "crow must ascend from 0 to the number of entries";
  CHECK(refusal([](Cell<float>* cell) { cell->crow[2] = cell->crow[1] - 1; }) == crow);
  CHECK(refusal([](Cell<float>* cell) { cell->crow.back() += 1; }) == crow);
  CHECK(refusal([](Cell<float>* cell) { cell->crow.front() = -1; }) == crow);
  const std::string starts = "sample_ptr must ascend from 0 to the number of rows";
  CHECK(refusal([](Cell<float>* cell) { cell->sample_ptr[0] = 1; }) == starts);
  CHECK(refusal([](Cell<float>* cell) { cell->sample_ptr[1] = 11; }) == starts);
  CHECK(refusal([](Cell<float>* cell) { cell->sample_ptr[2] = 9; }) == starts);
  CHECK(refusal([](Cell<float>* cell) { cell->counter(1, deq::kSteps) = 6; }) ==
        "a running sample must have a step of its trace left");
}

}  // namespace
