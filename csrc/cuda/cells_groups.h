// The iteration of samples that are runs of rows, graphs: each by one block, by the blocks of a
// cluster, or by all blocks of a grid, from its first step to its last.
//
// The blocks of a team share a sample's rows, take a step, meet at a barrier, and draw the same
// conclusion from the same partial sums, each for itself; so one barrier per step is enough. A
// sample's rows live in shared memory where it has one block and they fit, else in scratch.
#pragma once

#include <cstdint>

#include "cuda/cells_pass.h"

namespace deq {

// The blocks that iterate a sample together.
struct CellTeam {
  GpuRegime regime;
  int64_t rank;
  int64_t ranks;

  // What any thread of the team has written is seen by all of them afterwards.
  template <typename Block>
  DEQ_DEVICE void sync(const Block& block) const {
    if (regime == GpuRegime::kBlock) {
      block.sync();
    } else if (regime == GpuRegime::kCluster) {
      block.sync_cluster();
    } else {
      block.sync_grid();
    }
  }
};

// Some rows of a sample that take a step together.
template <typename state_t>
struct GroupPass {
  using accum_t = accumulate_t<state_t>;

  const CellArguments<state_t>& a;
  const CellIterates<accum_t>& iterates;  // of the sample
  int64_t sample_begin;                   // its first row
  int64_t sample_rows;
  int64_t begin;  // first row of the pass within the sample
  int from;       // slot of z
  int to;         // slot of the next z

  DEQ_DEVICE bool runs(int) const { return true; }
  DEQ_DEVICE int64_t global(int row) const { return sample_begin + begin + row; }
  DEQ_DEVICE accum_t* current(int row) const { return iterates.at(from, begin + row); }
  DEQ_DEVICE accum_t* next(int row) const { return iterates.at(to, begin + row); }

  DEQ_DEVICE void mix(int row, int64_t k, Pack<accum_t, kCellItem>& sums) const {
    if (a.crow == nullptr) {
      sums = scaled_items(a, current(row), global(row), k);
      return;
    }
    const int64_t end = a.crow[global(row) + 1];
    for (int64_t e = a.crow[global(row)]; e < end; ++e) {
      const int64_t other = a.col[e];
      const accum_t value = widen(a.values[e]);
      const auto z = scaled_items(a, iterates.at(from, other - sample_begin), other, k);
      DEQ_UNROLL
      for (int v = 0; v < kCellItem; ++v) {
        sums.values[v] += value * z.values[v];
      }
    }
  }
};

// What the host cannot look at: no entry of S leads out of its sample, or out of memory.
template <typename state_t, typename Block>
DEQ_DEVICE void check_entries(const Block& block, const CellArguments<state_t>& a, int64_t begin,
                              int64_t end, int64_t row) {
  const int64_t first = a.crow[row];
  const int64_t last = a.crow[row + 1];
  block.check(0 <= first && first <= last && last <= a.entries,
              "crow must ascend from 0 to the number of entries");
  for (int64_t e = first; e < last; ++e) {
    block.check(begin <= a.col[e] && a.col[e] < end, "col must stay within the rows of its sample");
  }
}

template <typename state_t>
struct GroupSolve {
  using accum_t = accumulate_t<state_t>;

  const CellArguments<state_t>& a;
  const CellPlan& plan;
  CellTeam team;
  int64_t sample;
  int64_t begin;  // first row of the sample
  int64_t rows;
  CellIterates<accum_t> iterates;
  double* partials;  // [2, tiles, 2]

  template <typename Block>
  DEQ_DEVICE GroupSolve(const Block& block, const CellArguments<state_t>& a_, const CellPlan& plan_,
                        const CellTeam& team_, int64_t sample_, int64_t begin_, int64_t rows_)
      : a(a_), plan(plan_), team(team_), sample(sample_), begin(begin_), rows(rows_) {
    if (team.ranks == 1 && rows <= plan.kept_rows) {
      iterates = {reinterpret_cast<accum_t*>(block.shared() + plan.shared.kept),
                  plan.kept_rows * plan.row_stride, plan.row_stride};
      partials = reinterpret_cast<double*>(block.shared() + plan.shared.partials);
    } else {
      iterates = {a.row_scratch + begin * plan.row_stride, a.rows * plan.row_stride,
                  plan.row_stride};
      // The samples before have at most this many tiles.
      partials = a.sum_scratch + 4 * (begin / kCellTile + sample);
    }
  }

  DEQ_DEVICE int64_t tiles() const { return (rows + kCellTile - 1) / kCellTile; }

  // Calls body(first row, count) for each pass of this block.
  template <typename Body>
  DEQ_DEVICE void for_each_pass(const Body& body) const {
    for (int64_t row = team.rank * plan.pass_rows; row < rows; row += team.ranks * plan.pass_rows) {
      body(row, static_cast<int>(rows - row < plan.pass_rows ? rows - row : plan.pass_rows));
    }
  }

  template <typename Block>
  DEQ_DEVICE void load(const Block& block) const {
    for_each_pass([&](int64_t first, int count) {
      const int dim = static_cast<int>(a.dim);
      for (int i = block.thread(); i < count * dim; i += kGpuThreads) {
        const int64_t row = first + i / dim;
        iterates.at(0, row)[i % dim] = widen(a.z[(begin + row) * a.dim + i % dim]);
      }
      if (a.crow != nullptr && block.thread() < count) {
        check_entries(block, a, begin, begin + rows, begin + first + block.thread());
      }
    });
  }

  template <typename Block>
  DEQ_DEVICE void store(const Block& block, int slot) const {
    for_each_pass([&](int64_t first, int count) {
      const int dim = static_cast<int>(a.dim);
      for (int i = block.thread(); i < count * dim; i += kGpuThreads) {
        const int64_t row = first + i / dim;
        narrow(iterates.at(slot, row)[i % dim], &a.z[(begin + row) * a.dim + i % dim]);
      }
    });
  }

  // Takes a step from slot `from` to slot `to`, and leaves the partial sums of its tiles.
  template <typename Block>
  DEQ_DEVICE void step(const Block& block, int from, int to, double* sums) const {
    const double* const row_norms =
        reinterpret_cast<const double*>(block.shared() + plan.shared.row_norms);
    for_each_pass([&](int64_t first, int count) {
      evaluate_rows(block, a, plan, GroupPass<state_t>{a, iterates, begin, rows, first, from, to},
                    count);
      // Rows in order; the next pass overwrites their norms only after two more barriers.
      const int tile = block.thread() / 2 * kCellTile;
      if (tile < count) {
        const int which = block.thread() % 2;
        double sum = row_norms[2 * tile + which];
        for (int row = tile + 1; row < tile + kCellTile && row < count; ++row) {
          sum = combined(a.norm, sum, row_norms[2 * row + which]);
        }
        sums[(first + tile) / kCellTile * 2 + which] = sum;
      }
    });
  }

  // The sample's squared norms for thread 0: threads take turns at the tiles, then a tree over each
  // warp, then the warps in order.
  template <typename Block>
  DEQ_DEVICE void total(const Block& block, const double* sums, double (&squares)[2]) const {
    double* const totals = reinterpret_cast<double*>(block.shared() + plan.shared.totals);
    const int64_t count = tiles();
    const bool one_warp = count <= kGpuWarp;
    if (block.warp() == 0 || !one_warp) {
      double norms[2] = {};
      for (int64_t tile = block.thread(); tile < count; tile += kGpuThreads) {
        norms[0] = combined(a.norm, norms[0], sums[2 * tile]);
        norms[1] = combined(a.norm, norms[1], sums[2 * tile + 1]);
      }
      put_pair(block, combine_warp(block, a.norm, norms), totals + 2 * block.warp());
    }
    if (one_warp) {
      if (block.warp() == 0) {
        block.sync_warp();
      }
    } else {
      block.sync();
    }
    if (block.thread() == 0) {
      squares[0] = totals[0];
      squares[1] = totals[1];
      for (int warp = 1; warp < (one_warp ? 1 : kGpuWarps); ++warp) {
        squares[0] = combined(a.norm, squares[0], totals[2 * warp]);
        squares[1] = combined(a.norm, squares[1], totals[2 * warp + 1]);
      }
      square_norms(a.norm, squares);
    }
  }

  // All blocks of the team are here, and have written nothing of the sample yet.
  template <typename Block>
  DEQ_DEVICE void run(const Block& block) const {
    double* const norms = reinterpret_cast<double*>(block.shared() + plan.shared.norms);
    int64_t* const counters = reinterpret_cast<int64_t*>(block.shared() + plan.shared.counters);
    int* const verdict = reinterpret_cast<int*>(block.shared() + plan.shared.flags);
    const bool leads = team.rank == 0 && block.thread() == 0;
    if (block.thread() == 0) {
      load_tables(a, sample, norms, counters);
    }
    load(block);
    team.sync(block);
    int current = 0;
    int next = 1;
    int best = 2;
    bool kept = false;
    // A team's fast blocks write sums of the next step while slow ones read those of this one.
    for (int64_t parity = 0;; parity ^= 1) {
      double* const sums = partials + 2 * parity * tiles();
      step(block, current, next, sums);
      team.sync(block);
      double squares[2];
      total(block, sums, squares);
      if (block.thread() == 0) {
        // Blocks that do not lead have no business with the trace.
        double* const trace = leads
                                  ? traced(a, sample, counters[kSteps])
                                  : reinterpret_cast<double*>(block.shared() + plan.shared.totals);
        const CellVerdict drawn =
            judge_cell(squares, a.limits, a.fixed_steps, norms, trace, counters);
        verdict[0] = drawn.improved;
        verdict[1] = drawn.advance;
      }
      block.sync();
      const int evaluated = current;
      if (verdict[0] != 0) {
        current = best;
        best = evaluated;
        kept = true;
      }
      if (verdict[1] == 0) {
        break;
      }
      const int free = current;
      current = next;
      next = free;
    }
    if (a.fixed_steps || kept) {
      store(block, a.fixed_steps ? next : best);
    }
    if (leads) {
      store_tables(block, a, sample, norms, counters);
    }
    block.sync();  // before another sample takes the place of this one
  }
};

// Where a sample's rows begin, and how many there are.
template <typename state_t, typename Block>
DEQ_DEVICE void sample_place(const Block& block, const CellArguments<state_t>& a, int64_t sample,
                             int64_t* begin, int64_t* rows) {
  const int64_t first = a.sample_ptr[sample];
  const int64_t last = a.sample_ptr[sample + 1];
  block.check((sample > 0 ? 0 <= first : first == 0) && first <= last &&
                  (sample + 1 < a.samples ? last <= a.rows : last == a.rows),
              "sample_ptr must ascend from 0 to the number of rows");
  *begin = first;
  *rows = last - first;
}

template <typename state_t, typename Block>
DEQ_DEVICE bool is_large(const Block& block, const CellArguments<state_t>& a, int64_t sample) {
  int64_t begin;
  int64_t rows;
  sample_place(block, a, sample, &begin, &rows);
  return rows > kAloneRows;
}

template <typename state_t, typename Block>
DEQ_DEVICE void solve_group(const Block& block, const CellArguments<state_t>& a,
                            const CellPlan& plan, const CellTeam& team, int64_t sample) {
  if (!is_running(block, a, sample)) {
    return;
  }
  int64_t begin;
  int64_t rows;
  sample_place(block, a, sample, &begin, &rows);
  GroupSolve<state_t>(block, a, plan, team, sample, begin, rows).run(block);
}

// The first sample from `from` on that is too large for a block alone, or the number of samples;
// the same for all threads.
template <typename state_t, typename Block>
DEQ_DEVICE int64_t next_large(const Block& block, const CellArguments<state_t>& a, int64_t from,
                              int* flags) {
  for (int64_t first = from; first < a.samples; first += kGpuThreads) {
    const int64_t mine = first + block.thread();
    flags[block.thread()] = mine < a.samples && is_large(block, a, mine) ? 1 : 0;
    block.sync();
    int found = 0;
    while (found < kGpuThreads && flags[found] == 0) {
      ++found;
    }
    block.sync();
    if (found < kGpuThreads) {
      return first + found;
    }
  }
  return a.samples;
}

// The body of the kernel. In a grid, small samples are taken by one block each; then all blocks
// take the large ones together.
template <typename state_t, typename Block>
DEQ_DEVICE void solve_groups(const Block& block, const CellArguments<state_t>& a,
                             const CellPlan& plan) {
  stage_resident(block, a, plan);
  const bool grid = plan.regime == GpuRegime::kGrid;
  int* const flags = reinterpret_cast<int*>(block.shared() + plan.shared.flags);
  const int64_t teams = block.blocks() / plan.cluster;
  CellTeam team = {plan.cluster > 1 ? GpuRegime::kCluster : GpuRegime::kBlock,
                   plan.cluster > 1 ? block.rank() : 0, plan.cluster};
  int64_t sample = plan.cluster > 1 ? block.problem() : block.index();
  while (true) {
    if (team.regime != GpuRegime::kGrid) {
      while (grid && sample < a.samples && is_large(block, a, sample)) {
        sample += teams;
      }
      if (sample >= a.samples) {
        if (!grid) {
          return;
        }
        team = {GpuRegime::kGrid, block.index(), block.blocks()};
        sample = 0;
      }
    }
    if (team.regime == GpuRegime::kGrid) {
      sample = next_large(block, a, sample, flags);
      if (sample >= a.samples) {
        return;
      }
    }
    solve_group(block, a, plan, team, sample);
    sample += team.regime == GpuRegime::kGrid ? 1 : teams;
  }
}

}  // namespace deq
