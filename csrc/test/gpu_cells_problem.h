// A structured cell with samples of several sizes: plain float64 loops, and the kernel bodies on
// the block emulator.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "cuda/cells/groups.h"
#include "cuda/cells/rows.h"
#include "test/activation_value.h"
#include "test/emulator.h"
#include "test/gpu_arrays.h"

namespace deq_test {

enum class Entries { kNone, kSymmetric, kDirected };
enum class WeightLayout { kRows, kColumns, kGaps };

struct CellOptions {
  std::vector<int64_t> sizes;  // rows of each sample; empty: as many samples of one row as `rows`
  int64_t rows = 0;
  int64_t dim = 1;
  Entries entries = Entries::kDirected;
  WeightLayout layout = WeightLayout::kRows;
  bool scaled = false;
  deq::Activation activation = deq::Activation::kTanh;
  deq::NormKind norm = deq::NormKind::kTwo;
  double gain = 0.4;  // absolute row sums of V
  double damping = 1.0;
  bool fixed_steps = false;
  bool accelerate = false;
  int64_t max_steps = 6;
  double rtol = 0.0;
  double atol = 1e-3;
  double fading = 1.0;  // of b and the start, from one row to the next
};

template <typename state_t>
struct Cell {
  CellOptions options;
  int64_t rows;
  int64_t samples;
  Array<state_t> weight;  // [dim, dim], or its transpose
  std::vector<int64_t> crow = {0};
  std::vector<int64_t> col;
  std::vector<state_t> values;
  std::vector<int64_t> sample_ptr = {0};
  Array<state_t> bias;
  Array<state_t> scale;
  std::vector<state_t> z;
  std::vector<double> record;
  std::vector<int64_t> counters;
  std::vector<int64_t> active;

  explicit Cell(const CellOptions& given)
      : options(given),
        rows(count_rows(given)),
        samples(given.sizes.empty() ? rows : static_cast<int64_t>(given.sizes.size())),
        weight(1, given.dim, given.dim, given.dim + (given.layout == WeightLayout::kGaps ? 3 : 0)),
        bias(1, rows, given.dim, given.dim + 3),
        scale(1, rows, given.dim, given.dim + 1),
        record(static_cast<size_t>(samples * (deq::kNormColumns + given.max_steps)), std::nan("")),
        counters(static_cast<size_t>(samples * deq::kCounterColumns), 0),
        active({samples}) {
    const int64_t dim = options.dim;
    const std::vector<double> v = random_vector(dim * dim, 1);
    for (int64_t i = 0; i < dim; ++i) {
      double sum = 0.0;
      for (int64_t k = 0; k < dim; ++k) {
        sum += std::fabs(v[static_cast<size_t>(i * dim + k)]);
      }
      for (int64_t k = 0; k < dim; ++k) {
        const double value = options.gain * v[static_cast<size_t>(i * dim + k)] / sum;
        options.layout == WeightLayout::kColumns ? weight.set(0, k, i, value)
                                                 : weight.set(0, i, k, value);
      }
    }
    for (int64_t row = 0; row < rows; ++row) {
      const auto seed = static_cast<unsigned>(row);
      bias.set_random(0, row, 100 + seed);
      const std::vector<double> c = random_vector(dim, 5000 + seed);
      const std::vector<double> start = random_vector(dim, 9000 + seed);
      const double faded = std::pow(options.fading, static_cast<double>(row));
      for (int64_t i = 0; i < dim; ++i) {
        bias.set(0, row, i, faded * bias.at(0, row, i));
        scale.set(0, row, i, std::tanh(c[static_cast<size_t>(i)]));
        z.push_back(stored<state_t>(faded * start[static_cast<size_t>(i)]));
      }
    }
    int64_t begin = 0;
    for (int64_t size : options.sizes) {
      for (int64_t row = 0; row < size; ++row) {
        add_entries(begin, size, row);
      }
      begin += size;
      sample_ptr.push_back(begin);
    }
  }

  static int64_t count_rows(const CellOptions& options) {
    int64_t count = options.rows;
    for (int64_t size : options.sizes) {
      count += size;
    }
    return count;
  }

  // A ring with a self loop at every third node; directed graphs have one neighbour twice, entries
  // in descending order, and every fifth node of them is isolated.
  void add_entries(int64_t begin, int64_t size, int64_t row) {
    auto add = [&](int64_t column, double value) {
      col.push_back(begin + column);
      values.push_back(stored<state_t>(value));
    };
    if (options.entries == Entries::kSymmetric) {
      if (row % 3 == 0) {
        add(row, 0.3);
      }
      if (size > 1) {
        add((row + 1) % size, 0.35);
        add((row + size - 1) % size, 0.35);
      }
    } else if (options.entries == Entries::kDirected && row % 5 != 4) {
      add((row + 7) % size, 0.3);
      add((row + 1) % size, -0.25);
      add((row + 1) % size, -0.25);
      if (row % 3 == 0) {
        add(row, 0.2);
      }
    }
    crow.push_back(static_cast<int64_t>(col.size()));
  }

  bool grouped() const { return !options.sizes.empty(); }
  int64_t begin_of(int64_t sample) const {
    return grouped() ? sample_ptr[static_cast<size_t>(sample)] : sample;
  }
  int64_t end_of(int64_t sample) const {
    return grouped() ? sample_ptr[static_cast<size_t>(sample + 1)] : sample + 1;
  }
  int64_t& counter(int64_t sample, int64_t which) {
    return counters[static_cast<size_t>(sample * deq::kCounterColumns + which)];
  }
  double trace(int64_t sample, int64_t step) const {
    return record[static_cast<size_t>(sample * (deq::kNormColumns + options.max_steps) +
                                      deq::kNormColumns + step)];
  }
  double z_at(int64_t row, int64_t i) const {
    return static_cast<double>(deq::widen(z[static_cast<size_t>(row * options.dim + i)]));
  }

  // The rows of one sample.
  std::vector<double> z_of(int64_t sample) const {
    std::vector<double> rows_of;
    for (int64_t row = begin_of(sample); row < end_of(sample); ++row) {
      for (int64_t i = 0; i < options.dim; ++i) {
        rows_of.push_back(z_at(row, i));
      }
    }
    return rows_of;
  }

  // f of the rows of one sample.
  std::vector<double> evaluate(int64_t sample, const std::vector<double>& x) {
    const int64_t dim = options.dim;
    const int64_t begin = begin_of(sample);
    std::vector<double> f;
    for (int64_t row = begin; row < end_of(sample); ++row) {
      std::vector<double> mixed(static_cast<size_t>(dim));
      for (int64_t k = 0; k < dim; ++k) {
        auto scaled = [&](int64_t other) {
          const double c = options.scaled ? scale.at(0, other, k) : 1.0;
          return c * x[static_cast<size_t>((other - begin) * dim + k)];
        };
        double sum = 0.0;
        if (options.entries == Entries::kNone) {
          sum = scaled(row);
        } else {
          for (int64_t e = crow[static_cast<size_t>(row)]; e < crow[static_cast<size_t>(row + 1)];
               ++e) {
            sum += static_cast<double>(deq::widen(values[static_cast<size_t>(e)])) *
                   scaled(col[static_cast<size_t>(e)]);
          }
        }
        mixed[static_cast<size_t>(k)] = sum;
      }
      for (int64_t i = 0; i < dim; ++i) {
        double sum = bias.at(0, row, i);
        for (int64_t k = 0; k < dim; ++k) {
          sum +=
              (options.layout == WeightLayout::kColumns ? weight.at(0, k, i) : weight.at(0, i, k)) *
              mixed[static_cast<size_t>(k)];
        }
        f.push_back(activation_value(options.activation, sum));
      }
    }
    return f;
  }

  deq::CellDemand demand() const {
    return {rows,
            options.dim,
            samples,
            grouped(),
            options.accelerate,
            sizeof(state_t),
            sizeof(deq::accumulate_t<state_t>)};
  }

  void run(const deq::CellPlan& plan, Order order) {
    using accum_t = deq::accumulate_t<state_t>;
    const bool transposed = options.layout == WeightLayout::kColumns;
    deq::CellArguments<state_t> a = {};
    a.weight = weight.values.data();
    a.weight_row_stride = transposed ? 1 : weight.stride;
    a.weight_k_stride = transposed ? weight.stride : 1;
    if (options.entries != Entries::kNone) {
      a.crow = crow.data();
      a.col = col.data();
      a.values = values.data();
      a.entries = static_cast<int64_t>(col.size());
    }
    a.sample_ptr = grouped() ? sample_ptr.data() : nullptr;
    a.bias = bias.values.data();
    a.bias_stride = bias.stride;
    a.scale = options.scaled ? scale.values.data() : nullptr;
    a.scale_stride = scale.stride;
    a.z = z.data();
    a.record = record.data();
    a.counters = counters.data();
    a.active = active.data();
    a.rows = rows;
    a.dim = options.dim;
    a.samples = samples;
    a.activation = options.activation;
    a.norm = options.norm;
    a.damping = options.damping;
    a.fixed_steps = options.fixed_steps;
    a.accelerate = options.accelerate;
    a.limits = deq::cell_limits<accum_t>({options.rtol, options.atol, options.max_steps, 0, 1e6, 0},
                                         options.norm);
    std::vector<accum_t> row_scratch(static_cast<size_t>(plan.row_scratch),
                                     std::numeric_limits<accum_t>::quiet_NaN());
    std::vector<double> sum_scratch(static_cast<size_t>(plan.sum_scratch), std::nan(""));
    a.row_scratch = row_scratch.data();
    a.sum_scratch = sum_scratch.data();
    const bool grid = plan.regime == deq::GpuRegime::kGrid;
    const int64_t together = grid ? plan.blocks : plan.cluster;
    Emulator(order).run(plan.blocks / together, static_cast<int>(together), plan.shared.bytes,
                        [&](const Emulator::Block& block) {
                          if (grouped()) {
                            deq::solve_groups(block, a, plan);
                          } else {
                            deq::solve_rows(block, a, plan);
                          }
                        });
  }
};

// Whether two runs left the same bits.
template <typename state_t>
bool same_results(const Cell<state_t>& a, const Cell<state_t>& b) {
  return same_bits(a.z, b.z) && same_bits(a.record, b.record) && a.counters == b.counters &&
         a.active == b.active;
}

}  // namespace deq_test
