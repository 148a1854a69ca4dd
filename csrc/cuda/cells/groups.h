// The iteration of samples that are runs of rows, graphs: each by one block, by the blocks of a
// cluster, or by all blocks of a grid, from its first step to its last.
//
// The blocks of a team share a sample's rows, take a step, meet at a barrier, and draw the same
// conclusion from the same partial sums, each for itself; so one barrier per step is enough, and a
// second one where an accelerated step has written the next iterate. A sample's rows live in shared
// memory where they fit, each in that of the block that computes it, from where the others of a
// cluster read it; else they live in scratch.
#pragma once

#include <cstdint>

#include "algebra/multiply_add.h"
#include "cuda/cells/pass.h"

namespace deq {

// The blocks that iterate a sample together.
struct CellTeam {
  GpuRegime regime;
  int rank;
  int ranks;

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

// What a block knows of the sample it works on. It lies in shared memory, from where it is read
// when it is used: registers are for the product.
template <typename accum_t>
struct GroupState {
  CellTeam team;
  int64_t sample;
  int64_t begin;  // first row of the sample
  int64_t rows;
  accum_t* iterates;  // its rows in slot 0
  int64_t slot_stride;
  double* partials;  // [2, tiles, kCellSums]
  int spread;        // rows on chip are spread over 2^spread blocks
  int parity;        // of the step
  bool advance;
  CellSlots slots;
  Crop last;
  double unit;

  DEQ_DEVICE int64_t tiles() const { return (rows + kCellTile - 1) / kCellTile; }
  // Those of this step. Fast blocks of a team leave sums of the next one while slow ones read them.
  DEQ_DEVICE double* sums() const { return partials + kCellSums * parity * tiles(); }
};

// Some rows of a sample that take a step together.
template <typename state_t, typename Block>
struct GroupPass {
  using accum_t = accumulate_t<state_t>;

  const Block& block;
  const CellArguments<state_t>& a;
  const CellPlan& plan;
  const GroupState<accum_t>& state;
  int64_t first;  // row within the sample

  // A row of the sample in a slot, where the block that computes it keeps it.
  DEQ_DEVICE accum_t* at(int slot, int64_t row) const {
    const int64_t own = row >> (plan.pass_shift + state.spread) << plan.pass_shift;
    const int64_t place = own + (row & (plan.pass_rows - 1));
    return state.iterates + slot * state.slot_stride + place * plan.row_stride;
  }
  // The same, of any row, to be read.
  DEQ_DEVICE const accum_t* find(int slot, int64_t row) const {
    const int owner = static_cast<int>(row >> plan.pass_shift) & ((1 << state.spread) - 1);
    return state.spread == 0 ? at(slot, row) : block.of_rank(at(slot, row), owner);
  }
  DEQ_DEVICE bool runs(int) const { return true; }
  DEQ_DEVICE int64_t global(int row) const { return state.begin + first + row; }
  DEQ_DEVICE accum_t* slot(int which, int row) const {
    return at(state.slots.of[which], first + row);
  }
  DEQ_DEVICE accum_t* z(int row) const { return slot(kZ, row); }
  DEQ_DEVICE accum_t* output(int row) const { return slot(kOutput, row); }
  DEQ_DEVICE accum_t* combined(int row) const { return slot(kCombined, row); }
  DEQ_DEVICE accum_t* last_combined(int row) const { return slot(kLastCombined, row); }
  DEQ_DEVICE accum_t unit(int) const { return static_cast<accum_t>(state.unit); }

  DEQ_DEVICE void mix(int row, int64_t k, Pack<accum_t, kCellItem>& sums) const {
    if (a.crow == nullptr) {
      sums = scaled_items(a, z(row), global(row), k);
      return;
    }
    const int64_t end = a.crow[global(row) + 1];
    for (int64_t e = a.crow[global(row)]; e < end; ++e) {
      const int64_t other = a.col[e];
      const accum_t value = widen(a.values[e]);
      const auto items = scaled_items(a, find(state.slots.of[kZ], other - state.begin), other, k);
      DEQ_UNROLL
      for (int v = 0; v < kCellItem; ++v) {
        sums.values[v] = multiply_add(value, items.values[v], sums.values[v]);
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

// The steps of a sample by one block of its team.
template <typename state_t, typename Block>
struct GroupSolve {
  using accum_t = accumulate_t<state_t>;
  using Pass = GroupPass<state_t, Block>;

  const Block& block;
  const CellArguments<state_t>& a;
  const CellPlan& plan;

  DEQ_DEVICE GroupState<accum_t>& state() const {
    static_assert(sizeof(GroupState<accum_t>) <= kGroupStateBytes, "has its place in the layout");
    return *reinterpret_cast<GroupState<accum_t>*>(block.shared() + plan.shared.state);
  }

  // By one thread.
  DEQ_DEVICE void begin(const CellTeam& team, int64_t sample, int64_t first, int64_t rows) const {
    GroupState<accum_t>& s = state();
    s.team = team;
    s.sample = sample;
    s.begin = first;
    s.rows = rows;
    // The samples before have at most this many tiles.
    s.partials = a.sum_scratch + 2 * kCellSums * (first / kCellTile + sample);
    s.spread = 0;
    if (team.regime != GpuRegime::kGrid &&
        rows_per_block(rows, plan, team.ranks) <= plan.kept_rows) {
      s.iterates = reinterpret_cast<accum_t*>(block.shared() + plan.shared.kept);
      s.slot_stride = plan.kept_rows * plan.row_stride;
      if (team.ranks == 1) {
        s.partials = reinterpret_cast<double*>(block.shared() + plan.shared.partials);
      }
      while (1 << s.spread < team.ranks) {
        ++s.spread;
      }
    } else {
      s.iterates = a.row_scratch + first * plan.row_stride;
      s.slot_stride = a.rows * plan.row_stride;
    }
    s.slots.reset();
    s.parity = 0;
    s.advance = true;
    s.last = Crop();
    s.unit = 1.0;
    load_tables(a, sample, norms(), counters());
  }

  DEQ_DEVICE double* norms() const {
    return reinterpret_cast<double*>(block.shared() + plan.shared.norms);
  }
  DEQ_DEVICE int64_t* counters() const {
    return reinterpret_cast<int64_t*>(block.shared() + plan.shared.counters);
  }

  // Calls body(pass, rows) for each pass of this block.
  template <typename Body>
  DEQ_DEVICE void for_each_pass(const Body& body) const {
    const GroupState<accum_t>& s = state();
    for (int64_t row = int64_t(s.team.rank) * plan.pass_rows; row < s.rows;
         row += int64_t(s.team.ranks) * plan.pass_rows) {
      const int64_t rest = s.rows - row;
      body(Pass{block, a, plan, s, row},
           static_cast<int>(rest < plan.pass_rows ? rest : plan.pass_rows));
    }
  }

  DEQ_DEVICE void load() const {
    for_each_pass([&](const Pass& pass, int rows) {
      const int dim = static_cast<int>(a.dim);
      for (int i = block.thread(); i < rows * dim; i += kGpuThreads) {
        pass.z(i / dim)[i % dim] = widen(a.z[pass.global(0) * a.dim + i]);
      }
      if (a.crow != nullptr && block.thread() < rows) {
        check_entries(block, a, state().begin, state().begin + state().rows,
                      pass.global(block.thread()));
      }
    });
  }

  DEQ_DEVICE void store(int slot) const {
    for_each_pass([&](const Pass& pass, int rows) {
      const int dim = static_cast<int>(a.dim);
      for (int i = block.thread(); i < rows * dim; i += kGpuThreads) {
        narrow(pass.at(slot, pass.first + i / dim)[i % dim], &a.z[pass.global(0) * a.dim + i]);
      }
    });
  }

  // Evaluates the iterate, and leaves the partial sums [tiles, kCellSums] of the block's tiles.
  DEQ_DEVICE void step() const {
    for_each_pass([&](const Pass& pass, int rows) {
      evaluate_rows(block, a, plan, pass, rows);
      // Rows in order; the next pass overwrites their sums only after two more barriers.
      const int tile = block.thread() / kCellSums * kCellTile;
      const int which = block.thread() % kCellSums;
      if (tile < rows && has_sum(a, which)) {
        const double* const row_sums =
            reinterpret_cast<const double*>(block.shared() + plan.shared.row_sums);
        double sum = row_sum(a, row_sums + kCellSums * tile, which);
        for (int row = tile + 1; row < tile + kCellTile && row < rows; ++row) {
          sum = combined(kind_of(a, which), sum, row_sum(a, row_sums + kCellSums * row, which));
        }
        const int64_t place = (pass.first + tile) / kCellTile;
        state().sums()[kCellSums * place + which] = sum;
      }
    });
  }

  // Two neighbouring sums of the sample, `first` and the next, over the tiles: threads take turns
  // at them, then a tree over each warp.
  DEQ_DEVICE void total_pair(const double* partials, int64_t tiles, int first,
                             double* totals) const {
    const NormKind kind = kind_of(a, first);
    double pair[2] = {};
    for (int64_t tile = block.thread(); tile < tiles; tile += kGpuThreads) {
      pair[0] = combined(kind, pair[0], partials[kCellSums * tile + first]);
      pair[1] = combined(kind, pair[1], partials[kCellSums * tile + first + 1]);
    }
    put_pair(block, combine_warp(block, kind, pair), totals + kCellSums * block.warp() + first);
  }

  // The sample's sums for thread 0, where the first warp leaves its own: the warps in order.
  DEQ_DEVICE double* total() const {
    double* const totals = reinterpret_cast<double*>(block.shared() + plan.shared.totals);
    const int64_t tiles = state().tiles();
    const bool one_warp = tiles <= kGpuWarp;
    if (block.warp() == 0 || !one_warp) {
      const double* const partials = state().sums();
      for (int first = 0; first < kCellSums; first += 2) {
        if (has_sum(a, first)) {
          total_pair(partials, tiles, first, totals);
        }
      }
    }
    if (!one_warp) {
      block.sync();
    } else if (block.warp() == 0) {
      block.sync_warp();
    }
    if (block.thread() == 0) {
      for (int i = kCellSums; i < (one_warp ? 0 : kGpuWarps * kCellSums); ++i) {
        const int which = i % kCellSums;
        if (has_sum(a, which)) {
          totals[which] = combined(kind_of(a, which), totals[which], totals[i]);
        }
      }
      square_norms(a, totals);
    }
    return totals;
  }

  // By thread 0 of every block, each of which has the sample's tables.
  DEQ_DEVICE void judge_step(double* sums) const {
    GroupState<accum_t>& s = state();
    // One block writes the trace; the others write to a sum that is not read.
    double* const trace =
        s.team.rank == 0 ? traced(a, s.sample, counters()[kSteps]) : sums + kCellSums;
    const CellDecision decision = decide_cell(sums, a.norm, a.limits, a.fixed_steps, a.accelerate,
                                              norms(), trace, counters(), &s.last);
    s.slots.follow(decision, a.accelerate);
    s.parity ^= 1;
    s.advance = decision.action != CellAction::kStop;
    s.unit = static_cast<double>(s.last.template unit<accum_t>());
  }

  // The block's rows of the iterate that a combined step leads to.
  DEQ_DEVICE void combine() const {
    const CellSlots slots = state().slots;
    const int64_t slot_stride = state().slot_stride;
    const accum_t damping = static_cast<accum_t>(a.damping);
    for_each_pass([&](const Pass& pass, int rows) {
      const int dim = static_cast<int>(a.dim);
      for (int i = block.thread(); i < rows * dim; i += kGpuThreads) {
        slots.combine(damping, slot_stride, pass.at(0, pass.first + i / dim) + i % dim);
      }
    });
  }

  // The sample that `begin` was called for, by all threads of its team.
  DEQ_DEVICE void run() const {
    load();
    state().team.sync(block);
    while (state().advance) {
      step();
      state().team.sync(block);
      double* const sums = total();
      if (block.thread() == 0) {
        judge_step(sums);
      }
      block.sync();
      if (state().slots.combines) {
        combine();
        state().team.sync(block);
      }
    }
    if (a.fixed_steps || state().slots.kept) {
      store(state().slots.of[a.fixed_steps ? kOutput : kBest]);
    }
    if (state().team.rank == 0 && block.thread() == 0) {
      store_tables(block, a, state().sample, norms(), counters());
    }
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

// Iterates a sample. It and its team are left as they were, but need no registers meanwhile.
template <typename state_t, typename Block>
DEQ_DEVICE void solve_group(const Block& block, const CellArguments<state_t>& a,
                            const CellPlan& plan, CellTeam* team, int64_t* sample) {
  if (!is_running(block, a, *sample)) {
    return;
  }
  const GroupSolve<state_t, Block> solve = {block, a, plan};
  if (block.thread() == 0) {
    int64_t begin;
    int64_t rows;
    sample_place(block, a, *sample, &begin, &rows);
    solve.begin(*team, *sample, begin, rows);
  }
  block.sync();
  solve.run();
  *team = solve.state().team;
  *sample = solve.state().sample;
  block.sync();  // before another sample takes the place of this one
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
  CellTeam team = {plan.cluster > 1 ? GpuRegime::kCluster : GpuRegime::kBlock,
                   plan.cluster > 1 ? block.rank() : 0, static_cast<int>(plan.cluster)};
  int64_t sample = plan.cluster > 1 ? block.problem() : block.index();
  while (true) {
    if (team.regime != GpuRegime::kGrid) {
      while (grid && sample < a.samples && is_large(block, a, sample)) {
        sample += block.blocks();
      }
      if (sample >= a.samples) {
        if (!grid) {
          return;
        }
        team = {GpuRegime::kGrid, static_cast<int>(block.index()),
                static_cast<int>(block.blocks())};
        sample = 0;
      }
    }
    if (team.regime == GpuRegime::kGrid) {
      sample = next_large(block, a, sample, flags);
      if (sample >= a.samples) {
        return;
      }
    }
    solve_group(block, a, plan, &team, &sample);
    sample += team.regime == GpuRegime::kGrid ? 1 : block.blocks() / plan.cluster;
  }
}

}  // namespace deq
