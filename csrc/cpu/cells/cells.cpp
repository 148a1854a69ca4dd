// The damped fixed-point iteration of a structured cell, all of it in one call.
// Formulas: docs/algebra.md, section 3. Reference: deq_kernels/ops/cells/reference.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include "cpu/cells/groups.h"
#include "cpu/cells/rows.h"
#include "cpu/streaming.h"
#include "torch/arguments.h"

namespace deq {
namespace {

using OptionalTensor = std::optional<Tensor>;

// A sample with this many multiply-adds in a step is worth waking the other threads for each step.
constexpr int64_t kSharedStep = 1 << 20;

// Starts, one more than there are owners: ascending from 0 to `end`.
void check_starts(const Tensor& starts, const char* name, int64_t end) {
  const int64_t* start = data<int64_t>(starts);
  const int64_t count = starts.size(0);
  STD_TORCH_CHECK(start[0] == 0 && start[count - 1] == end, name,
                  " must begin with 0 and end with ", end, ", got ", start[0], " and ",
                  start[count - 1]);
  for (int64_t i = 1; i < count; ++i) {
    STD_TORCH_CHECK(start[i - 1] <= start[i], name, " must not descend, but does at ", i);
  }
}

// No entry of S leads out of its sample, or out of memory.
void check_columns(const int64_t* crow, const int64_t* col, const int64_t* sample_ptr,
                   int64_t samples) {
  for (int64_t sample = 0; sample < samples; ++sample) {
    const int64_t begin = sample_ptr[sample];
    const int64_t end = sample_ptr[sample + 1];
    for (int64_t e = crow[begin]; e < crow[end]; ++e) {
      STD_TORCH_CHECK(begin <= col[e] && col[e] < end, "col must stay within the rows of sample ",
                      sample, ", ", begin, " to ", end, ", got ", col[e], " at entry ", e);
    }
  }
}

// V in the blocks of tiles.h.
template <typename state_t, typename accum_t>
void pack(const Tensor& weight, int64_t dim, int64_t stride, accum_t* packed) {
  const state_t* from = data<state_t>(weight);
  const int64_t column_stride = weight.stride(0);
  const int64_t k_stride = weight.stride(1);
  const int64_t block = cell_tiles<accum_t>().block;
  for_each((stride + block - 1) / block, dim * dim > kSerialElements, false, [&](int64_t i) {
    const int64_t begin = i * block;
    const int64_t width = std::min(block, stride - begin);
    const int64_t columns = std::min(block, dim - begin);
    for (int64_t k = 0; k < dim; ++k) {
      state_t gathered[kMostCellColumns];
      for (int64_t column = 0; column < columns; ++column) {
        gathered[column] = from[(begin + column) * column_stride + k * k_stride];
      }
      state_tiles<state_t>().load(gathered, accum_t(1), columns, packed + begin * dim + k * width);
    }
  });
}

template <typename accum_t>
bool all_finite(const accum_t* values, int64_t count) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {  // without an early end, which would take longer
    finite &= std::fabs(values[i]) <= std::numeric_limits<accum_t>::max();
  }
  return finite;
}

// Runs body(worker) once on each of so many threads.
template <typename Body>
void on_workers(int64_t workers, const Body& body) {
  for_each(workers, workers > 1, false, body);
}

// Tiles of one sample, dealt out again for each pass over them. A worker begins with the share that
// it had the last time, which its cache may still hold, and then helps with those of others.
class SharedTiles {
 public:
  explicit SharedTiles(int64_t workers) : shares_(static_cast<size_t>(workers)) {}

  // Calls body(tile, worker) once for each tile.
  template <typename Body>
  void for_each(int64_t tiles, const Body& body) {
    const auto workers = std::min(tiles, static_cast<int64_t>(shares_.size()));
    for (int64_t share = 0; share < workers; ++share) {
      shares_[static_cast<size_t>(share)].next = tiles * share / workers;
    }
    on_workers(workers, [&](int64_t worker) {
      for (int64_t i = 0; i < workers; ++i) {
        const int64_t share = (worker + i) % workers;
        const int64_t end = tiles * (share + 1) / workers;
        std::atomic<int64_t>& next = shares_[static_cast<size_t>(share)].next;
        for (int64_t tile = next++; tile < end; tile = next++) {
          body(tile, worker);
        }
      }
    });
  }

 private:
  // A cache line each.
  struct alignas(64) Share {
    std::atomic<int64_t> next;
  };
  std::vector<Share> shares_;
};

template <typename state_t>
void solve_rows(const CellProblem<state_t>& problem, int64_t rows, int64_t threads) {
  const int64_t share = std::clamp((rows + threads - 1) / threads, int64_t(1), kCellRows);
  const int64_t tiles = (rows + share - 1) / share;
  std::atomic<int64_t> next{0};
  on_workers(std::min(threads, tiles), [&](int64_t) {
    CellRowTile<state_t> tile(problem, share);
    for (int64_t i = next++; i < tiles; i = next++) {
      tile.solve(i * share, std::min(share, rows - i * share));
    }
  });
}

template <typename state_t, typename small_t>
void solve_groups(const CellProblem<state_t>& problem, const int64_t* sample_ptr, int64_t samples,
                  int64_t threads) {
  using accum_t = accumulate_t<state_t>;
  const int64_t tile_size = kCellRoom * problem.stride;
  const auto step_work = [&](int64_t begin, int64_t end) {
    const int64_t entries = problem.crow == nullptr ? 0 : problem.crow[end] - problem.crow[begin];
    return ((end - begin) * problem.dim + entries) * problem.stride;
  };
  const int64_t all_work = step_work(0, sample_ptr[samples]);
  std::vector<int64_t> shared;
  std::vector<int64_t> single;
  for (const int64_t sample : running_samples(problem.counters, samples)) {
    const int64_t work = step_work(sample_ptr[sample], sample_ptr[sample + 1]);
    // Whole samples keep the threads busy as long as none takes much of the time by itself.
    const bool share = threads > 1 && work >= kSharedStep && 2 * threads * work > all_work;
    (share ? shared : single).push_back(sample);
  }
  if (!shared.empty()) {
    CellBuffer<accum_t> memory;
    accum_t* tile_memory = memory.resize(threads * tile_size);
    SharedTiles all(threads);
    CellGroup<state_t, small_t> group(problem);
    for (const int64_t sample : shared) {
      const int64_t first = sample_ptr[sample];
      group.solve(sample, first, sample_ptr[sample + 1] - first, [&](int64_t tiles, auto step) {
        all.for_each(tiles, [&](int64_t tile, int64_t worker) {
          step(tile, tile_memory + worker * tile_size);
        });
      });
    }
  }
  const int64_t count = static_cast<int64_t>(single.size());
  std::atomic<int64_t> next{0};
  on_workers(std::min(threads, count), [&](int64_t) {
    CellBuffer<accum_t> memory;
    accum_t* tile_memory = memory.resize(tile_size);
    CellGroup<state_t, small_t> group(problem);
    for (int64_t i = next++; i < count; i = next++) {
      const int64_t sample = single[static_cast<size_t>(i)];
      const int64_t first = sample_ptr[sample];
      group.solve(sample, first, sample_ptr[sample + 1] - first, [&](int64_t tiles, auto step) {
        for (int64_t tile = 0; tile < tiles; ++tile) {
          step(tile, tile_memory);
        }
      });
    }
  });
}

void cells_iterate(const Tensor& weight, const OptionalTensor& crow, const OptionalTensor& col,
                   const OptionalTensor& values, const OptionalTensor& sample_ptr,
                   const Tensor& bias, const OptionalTensor& scale, const Tensor& z,
                   const Tensor& record, const Tensor& counters, const Tensor& active,
                   int64_t activation, double rtol, double atol, double damping, int64_t norm,
                   int64_t stall_steps, double divergence_factor, bool fixed_steps,
                   bool accelerate) {
  const CellsShape shape =
      check_cells_iterate(weight, crow, col, values, sample_ptr, bias, scale, z, record, counters,
                          active, activation, norm, fixed_steps, accelerate);
  check_stopping(rtol, atol, damping, stall_steps, divergence_factor);
  const int64_t* starts = sample_ptr ? data<int64_t>(*sample_ptr) : nullptr;
  if (sample_ptr) {
    check_starts(*sample_ptr, "sample_ptr", shape.rows);
  }
  if (crow) {
    check_starts(*crow, "crow", shape.entries);
    check_columns(data<int64_t>(*crow), data<int64_t>(*col), starts, shape.samples);
  }
  int64_t* counter = data<int64_t>(counters);
  check_counters(running_samples(counter, shape.samples), counter, shape.max_steps);
  with_state_type(z.scalar_type(), "z", [&](auto value) {
    using state_t = decltype(value);
    using accum_t = accumulate_t<state_t>;
    const int64_t lanes = cell_tiles<accum_t>().lanes;
    const int64_t stride = (shape.dim + lanes - 1) / lanes * lanes;
    CellBuffer<accum_t> weight_memory;
    accum_t* packed = weight_memory.resize(shape.dim * stride);
    pack<state_t>(weight, shape.dim, stride, packed);
    CellBuffer<accum_t> entry_memory;
    accum_t* entries = nullptr;
    if (crow) {
      entries = entry_memory.resize((shape.entries + lanes - 1) / lanes * lanes);
      state_tiles<state_t>().load(data<state_t>(*values), accum_t(1), shape.entries, entries);
    }
    CellBuffer<BFloat16Pair> pair_memory;
    const BFloat16Pair* packed_pairs = nullptr;
    if constexpr (std::is_same_v<accum_t, float>) {
      // Rows that are samples stop one by one and would each be exact at another time.
      const CellDifferences* differences = cell_differences();
      if (differences != nullptr && accelerate && starts != nullptr &&
          shape.dim >= kLeastDifferenceDim) {
        BFloat16Pair* pairs = pair_memory.resize(difference_pairs(shape.dim) * stride);
        differences->pack(packed, shape.dim, stride, pairs);
        packed_pairs = pairs;
      }
    }
    CellProblem<state_t> problem = {};
    problem.dim = shape.dim;
    problem.stride = stride;
    problem.packed = packed;
    problem.finite = all_finite(packed, shape.dim * stride) && all_finite(entries, shape.entries);
    problem.packed_pairs = packed_pairs;
    problem.crow = crow ? data<int64_t>(*crow) : nullptr;
    problem.col = crow ? data<int64_t>(*col) : nullptr;
    problem.values = entries;
    problem.bias = {data<state_t>(bias), bias.stride(0)};
    if (scale) {
      problem.scale = {data<state_t>(*scale), scale->stride(0)};
    }
    problem.z = data<state_t>(z);
    problem.records = data<double>(record);
    problem.counters = counter;
    problem.activation = static_cast<Activation>(activation);
    problem.norm = starts == nullptr && norm == static_cast<int64_t>(NormKind::kRows)
                       ? NormKind::kTwo
                       : static_cast<NormKind>(norm);
    problem.damping = damping;
    problem.fixed_steps = fixed_steps;
    problem.accelerate = accelerate;
    problem.limits =
        cell_limits<accum_t>({rtol, atol, shape.max_steps, stall_steps, divergence_factor,
                              /*max_rejections=*/0},
                             problem.norm);
    const int64_t threads =
        shape.rows * shape.dim * stride <= kSerialElements ? 1 : torch::stable::get_num_threads();
    if (starts == nullptr) {
      solve_rows(problem, shape.rows, threads);
    } else if (packed_pairs != nullptr) {
      if constexpr (std::is_same_v<accum_t, float>) {
        solve_groups<state_t, bfloat16>(problem, starts, shape.samples, threads);
      }
    } else {
      solve_groups<state_t, accum_t>(problem, starts, shape.samples, threads);
    }
  });
  *data<int64_t>(active) = count_running(counter, shape.samples);
}

}  // namespace
}  // namespace deq

STABLE_TORCH_LIBRARY_IMPL(deq_kernels, CPU, m) {
  m.impl("cells_iterate_", TORCH_BOX(&deq::cells_iterate));
}
