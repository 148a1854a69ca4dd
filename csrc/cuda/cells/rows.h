// The iteration where each row is a sample: a block takes a tile of rows until all have stopped.
#pragma once

#include <cstdint>

#include "cuda/cells/pass.h"

namespace deq {

// Warps with a thread for each row of the largest tile.
constexpr int kRowWarps = 64 / kGpuWarp;

// What a block knows of each row of its tile, in shared memory.
struct CellRowState {
  CellSlots slots;
  bool runs;
  Crop last;
  double unit;
};
static_assert(sizeof(CellRowState) <= kRowStateBytes, "has its place in the layout");

template <typename state_t>
struct RowPass {
  using accum_t = accumulate_t<state_t>;

  const CellArguments<state_t>& a;
  const CellPlan& plan;
  accum_t* iterates;  // the tile's rows in slot 0
  int64_t slot_stride;
  const CellRowState* states;  // [pass_rows]
  int64_t begin;               // first row of the tile

  DEQ_DEVICE bool runs(int row) const { return states[row].runs; }
  DEQ_DEVICE int64_t global(int row) const { return begin + row; }
  DEQ_DEVICE accum_t* at(int slot, int row) const {
    return iterates + slot * slot_stride + row * plan.row_stride;
  }
  DEQ_DEVICE accum_t* slot(int which, int row) const {
    return at(states[row].slots.of[which], row);
  }
  DEQ_DEVICE accum_t* z(int row) const { return slot(kZ, row); }
  DEQ_DEVICE accum_t* output(int row) const { return slot(kOutput, row); }
  DEQ_DEVICE accum_t* combined(int row) const { return slot(kCombined, row); }
  DEQ_DEVICE accum_t* last_combined(int row) const { return slot(kLastCombined, row); }
  DEQ_DEVICE accum_t unit(int row) const { return static_cast<accum_t>(states[row].unit); }

  DEQ_DEVICE void mix(int row, int64_t k, Pack<accum_t, kCellItem>& sums) const {
    if (runs(row)) {
      sums = scaled_items(a, z(row), global(row), k);
    }
  }
};

// Whether any row of the tile runs: what the thread of each row knows, for all threads after the
// next barrier.
template <typename Block>
DEQ_DEVICE void put_running(const Block& block, bool runs, int* running) {
  if (block.warp() < kRowWarps) {
    int any = runs ? 1 : 0;
    DEQ_UNROLL
    for (int mask = kGpuWarp / 2; mask > 0; mask /= 2) {
      any |= block.shuffle_xor(any, mask);
    }
    if (block.lane() == 0) {
      running[block.warp()] = any;
    }
  }
}

// Records the evaluation of one row. Returns whether it goes on.
template <typename state_t, typename Block>
DEQ_DEVICE bool judge_row(const Block& block, const CellArguments<state_t>& a, int64_t sample,
                          double* sums, double* norms, int64_t* counters, CellRowState* state) {
  square_norms(a, sums);
  const CellDecision decision =
      decide_cell(sums, a.norm, a.limits, a.fixed_steps, a.accelerate, norms,
                  traced(a, sample, counters[kSteps]), counters, &state->last);
  state->slots.follow(decision, a.accelerate);
  state->unit = static_cast<double>(state->last.template unit<accumulate_t<state_t>>());
  if (decision.action == CellAction::kStop) {
    state->runs = false;
    store_tables(block, a, sample, norms, counters);
    return false;
  }
  return true;
}

// The body of the kernel.
template <typename state_t, typename Block>
DEQ_DEVICE void solve_rows(const Block& block, const CellArguments<state_t>& a,
                           const CellPlan& plan) {
  using accum_t = accumulate_t<state_t>;
  stage_resident(block, a, plan);
  char* const shared = block.shared();
  const int64_t begin = block.index() * plan.pass_rows;
  const int64_t rest = a.rows - begin;
  const int rows = static_cast<int>(rest < plan.pass_rows ? rest : plan.pass_rows);
  double* const row_sums = reinterpret_cast<double*>(shared + plan.shared.row_sums);
  double* const norms = reinterpret_cast<double*>(shared + plan.shared.norms);
  int64_t* const counters = reinterpret_cast<int64_t*>(shared + plan.shared.counters);
  CellRowState* const states = reinterpret_cast<CellRowState*>(shared + plan.shared.state);
  int* const running = reinterpret_cast<int*>(shared + plan.shared.totals);
  const bool on_chip = plan.kept_rows > 0;
  const RowPass<state_t> pass = {a,
                                 plan,
                                 on_chip ? reinterpret_cast<accum_t*>(shared + plan.shared.kept)
                                         : a.row_scratch + begin * plan.row_stride,
                                 (on_chip ? plan.kept_rows : a.rows) * plan.row_stride,
                                 states,
                                 begin};
  const int thread = block.thread();
  if (thread < rows) {
    CellRowState& state = states[thread];
    state.slots.reset();
    state.runs = is_running(block, a, begin + thread);
    state.last = Crop();
    state.unit = 1.0;
    if (state.runs) {
      load_tables(a, begin + thread, norms + thread * kNormColumns,
                  counters + thread * kCounterColumns);
    }
  }
  const int dim = static_cast<int>(a.dim);
  for (int i = thread; i < rows * dim; i += kGpuThreads) {
    pass.iterates[i / dim * plan.row_stride + i % dim] = widen(a.z[begin * a.dim + i]);
  }
  // Which rows were running before the first step is still to be seen after the last.
  const bool started = thread < rows && states[thread].runs;
  put_running(block, started, running);
  block.sync();
  while ((running[0] | running[1]) != 0) {
    evaluate_rows(block, a, plan, pass, rows);
    const bool goes_on = thread < rows && states[thread].runs &&
                         judge_row(block, a, begin + thread, row_sums + kCellSums * thread,
                                   norms + thread * kNormColumns,
                                   counters + thread * kCounterColumns, states + thread);
    put_running(block, goes_on, running);
    block.sync();
    if (a.accelerate) {
      for (int i = thread; i < rows * dim; i += kGpuThreads) {
        const CellSlots& slots = states[i / dim].slots;
        if (slots.combines) {
          slots.combine(static_cast<accum_t>(a.damping), pass.slot_stride,
                        pass.at(0, i / dim) + i % dim);
        }
      }
      block.sync();
    }
  }
  if (started && a.fixed_steps) {
    // Nothing was kept; the last iterate is in the place of the next one.
    states[thread].slots.of[kBest] = states[thread].slots.of[kOutput];
    states[thread].slots.kept = true;
  }
  block.sync();
  for (int i = thread; i < rows * dim; i += kGpuThreads) {
    if (states[i / dim].slots.kept) {
      narrow(pass.slot(kBest, i / dim)[i % dim], &a.z[begin * a.dim + i]);
    }
  }
}

}  // namespace deq
