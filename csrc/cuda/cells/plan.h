// How the iteration of a structured cell is launched on a GPU: a pure function, free of CUDA.
//
// What a row goes through, and the order in which norms are summed, depend on its sample alone. So
// the regime and every size below may follow the batch and the device, and change no bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "algebra/crop.h"
#include "algebra/macros.h"
#include "algebra/termination.h"
#include "cuda/cells/slots.h"
#include "cuda/plan.h"

namespace deq {

// Rows of a sample whose norms share a partial sum.
constexpr int kCellTile = 16;
// A thread computes this many rows of as many columns, from as many terms at a time.
constexpr int kCellItem = 4;
// Terms of a product that are added up by themselves before they meet the rest: a chain of all
// terms rounds too often, each time by the size of what it has come to. Weights that do not stay on
// chip are read in tiles of a divisor of it.
constexpr int kChainTerms = 64;
// Samples of up to this many rows are left to single blocks where others are shared by a grid.
constexpr int64_t kAloneRows = 64;
// From this many tiles on a sample is worth a barrier of many blocks in each step.
constexpr int64_t kSharedTiles = 4;
// Room for what a block knows of the sample it works on.
constexpr int64_t kGroupStateBytes = 144;
constexpr int64_t kRowStateBytes = 64;

struct CellDemand {
  int64_t rows;
  int64_t dim;
  int64_t samples;
  bool grouped;  // samples are runs of rows; else each row is one
  bool accelerate;
  int64_t state_bytes;  // per element of the weight, as it is stored
  int64_t accum_bytes;  // per element of an iterate
};

// Where a block keeps what in its dynamic shared memory, in bytes from the start.
struct CellLayout {
  int64_t weight;    // [columns, weight_stride] in the state's type
  int64_t input;     // [pass_rows, tile_k] in the type of sums, as the kept rows
  int64_t row_sums;  // [pass_rows, kCellSums] doubles
  int64_t totals;    // [kGpuWarps, kCellSums] doubles
  int64_t norms;     // [judged, kNormColumns] doubles
  int64_t counters;  // [judged, kCounterColumns] 64-bit integers
  int64_t state;     // kGroupStateBytes, or kRowStateBytes for each row
  int64_t flags;     // [kGpuThreads] integers
  int64_t partials;  // [2, kept tiles, kCellSums] doubles
  int64_t kept;      // [slots, kept_rows, row_stride]
  int64_t bytes;
};

struct CellPlan {
  GpuRegime regime;
  int64_t blocks;       // of the launch
  int64_t cluster;      // blocks per sample; 1 but for kCluster
  int pass_rows;        // rows that a block takes at a time, a power of two
  int pass_shift;       // its logarithm
  int column_groups;    // threads side by side, each with kCellItem columns
  int tile_k;           // terms of a product whose weights are on chip at a time
  int weight_stride;    // from column to column of the weights on chip
  bool resident;        // the whole weight stays on chip
  int slots;            // kept of every row
  int64_t kept_rows;    // rows of a sample that a block has room for on chip
  int64_t row_stride;   // elements from row to row of iterates
  int64_t row_scratch;  // elements of scratch for the rows that do not stay
  int64_t sum_scratch;  // doubles of scratch for their partial sums
  CellLayout shared;
};

inline int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

inline int slots_of(const CellDemand& demand) {
  return demand.accelerate ? kAllCellSlots : kCellSlots;
}

// Rows of a sample that one of `ranks` blocks takes, at most.
DEQ_HOST_DEVICE inline int64_t rows_per_block(int64_t rows, const CellPlan& plan, int64_t ranks) {
  if (ranks == 1) {
    return rows;
  }
  const int64_t passes = (rows + plan.pass_rows - 1) / plan.pass_rows;
  return (passes + ranks - 1) / ranks * plan.pass_rows;
}

inline void choose_tiles(const CellDemand& demand, int tile_k, CellPlan* plan) {
  // An odd number of vectors, so that threads with neighbouring columns read different banks.
  plan->tile_k = tile_k;
  plan->pass_shift = 0;
  while (1 << plan->pass_shift < plan->pass_rows) {
    ++plan->pass_shift;
  }
  plan->weight_stride = kCellItem * ((tile_k / kCellItem) | 1);
  plan->column_groups = kGpuThreads * kCellItem / plan->pass_rows;
  const int64_t columns =
      plan->resident ? demand.dim
                     : std::min<int64_t>(demand.dim, plan->column_groups * int64_t(kCellItem));
  const int64_t judged = demand.grouped ? 1 : plan->pass_rows;
  const int64_t kept_tiles = demand.grouped ? ceil_div(plan->kept_rows, kCellTile) : 0;
  constexpr int64_t kWord = 8;
  CellLayout& layout = plan->shared;
  layout = {};
  layout.input = round_up(columns * plan->weight_stride * demand.state_bytes, 16);
  layout.row_sums = layout.input + round_up(plan->pass_rows * tile_k * demand.accum_bytes, 16);
  layout.totals = layout.row_sums + plan->pass_rows * kCellSums * kWord;
  layout.norms = layout.totals + kGpuWarps * kCellSums * kWord;
  layout.counters = layout.norms + judged * kNormColumns * kWord;
  layout.state = layout.counters + judged * kCounterColumns * kWord;
  layout.flags =
      layout.state + (demand.grouped ? kGroupStateBytes : plan->pass_rows * kRowStateBytes);
  layout.partials = layout.flags + kGpuThreads * 4;
  layout.kept = round_up(layout.partials + kept_tiles * 2 * kCellSums * kWord, 16);
  layout.bytes =
      layout.kept + plan->slots * plan->kept_rows * plan->row_stride * demand.accum_bytes;
}

// Cuts the product so that it fits: the whole weight on chip, else as many terms as possible.
inline void fit_tiles(const CellDemand& demand, const GpuDevice& device, CellPlan* plan) {
  plan->kept_rows = 0;
  plan->resident = true;
  choose_tiles(demand, static_cast<int>(round_up(demand.dim, kCellItem)), plan);
  if (plan->shared.bytes <= device.shared_bytes) {
    return;
  }
  plan->resident = false;
  for (int tile_k = kChainTerms / 2; tile_k >= kCellItem; tile_k /= 2) {
    choose_tiles(demand, tile_k, plan);
    if (plan->shared.bytes <= device.shared_bytes) {
      return;
    }
  }
}

inline void keep_rows(const CellDemand& demand, const GpuDevice& device, int64_t wanted,
                      CellPlan* plan) {
  // What a row takes, its share of its tile's partial sums, and those of a tile that is cut short.
  constexpr int64_t kTileSums = 2 * kCellSums * 8;
  const int64_t row =
      plan->slots * plan->row_stride * demand.accum_bytes + ceil_div(kTileSums, kCellTile);
  constexpr int64_t kSlack = kTileSums + 16;
  const int64_t room = (device.shared_bytes - plan->shared.bytes - kSlack) / row;
  plan->kept_rows = std::max<int64_t>(0, std::min(wanted, room));
  choose_tiles(demand, plan->tile_k, plan);
}

// Rows that a block takes at a time: as many as make one item for each thread.
inline int widest_pass(int64_t dim) { return dim <= 64 ? 64 : dim <= 128 ? 32 : 16; }

inline CellPlan plan_cell_rows(const CellDemand& demand, const GpuDevice& device) {
  CellPlan plan = {};
  plan.slots = slots_of(demand);
  plan.regime = GpuRegime::kBlock;
  plan.cluster = 1;
  plan.row_stride = round_up(demand.dim, kCellItem);
  plan.pass_rows = widest_pass(demand.dim);
  fit_tiles(demand, device, &plan);
  // A weight that is read in every step is shared by as many rows as possible.
  const int least = plan.resident ? 4 : 16;
  while (plan.pass_rows > least && ceil_div(demand.rows, plan.pass_rows) < device.multiprocessors) {
    plan.pass_rows /= 2;
  }
  fit_tiles(demand, device, &plan);
  keep_rows(demand, device, plan.pass_rows, &plan);
  if (plan.kept_rows < plan.pass_rows) {
    keep_rows(demand, device, 0, &plan);
    plan.row_scratch = plan.slots * demand.rows * plan.row_stride;
  }
  plan.blocks = ceil_div(demand.rows, plan.pass_rows);
  return plan;
}

// Blocks that share a sample of the mean size: as many as its tiles keep busy while there would be
// idle multiprocessors. The sizes themselves are on the device, where the host must not look: one
// large sample among so many small ones that there is a block for each is left to its block too.
inline int64_t blocks_per_sample(const CellDemand& demand, const GpuDevice& device) {
  const int64_t tiles = ceil_div(ceil_div(demand.rows, demand.samples), kCellTile);
  if (tiles < kSharedTiles) {
    return 1;
  }
  return std::max<int64_t>(1, std::min(tiles, device.multiprocessors / demand.samples));
}

inline CellPlan plan_cell_groups(const CellDemand& demand, const GpuDevice& device,
                                 const char* forced) {
  auto is_forced = [&](GpuRegime regime) {
    return forced != nullptr && std::strcmp(forced, regime_name(regime)) == 0;
  };
  CellPlan plan = {};
  plan.slots = slots_of(demand);
  plan.row_stride = round_up(demand.dim, kCellItem);
  const int64_t mean = ceil_div(demand.rows, demand.samples);
  const int64_t wanted = blocks_per_sample(demand, device);
  plan.cluster = 1;
  while (2 * plan.cluster <= std::min(wanted, device.max_cluster)) {
    plan.cluster *= 2;
  }
  plan.regime = plan.cluster > 1 ? GpuRegime::kCluster : GpuRegime::kBlock;
  // What a cluster leaves idle must be worth the slower barrier.
  if (wanted >= 4 * plan.cluster) {
    plan.regime = GpuRegime::kGrid;
  }
  if (is_forced(GpuRegime::kBlock)) {
    plan.regime = GpuRegime::kBlock;
  } else if (is_forced(GpuRegime::kGrid)) {
    plan.regime = GpuRegime::kGrid;
  } else if (is_forced(GpuRegime::kCluster) && device.max_cluster > 1) {
    plan.regime = GpuRegime::kCluster;
    plan.cluster = std::max<int64_t>(2, plan.cluster);
  }
  plan.cluster = plan.regime == GpuRegime::kCluster ? plan.cluster : 1;
  const int64_t together = plan.regime == GpuRegime::kGrid ? device.multiprocessors : plan.cluster;
  plan.pass_rows = widest_pass(demand.dim);
  while (plan.pass_rows > kCellTile && plan.pass_rows / 2 * together >= mean) {
    plan.pass_rows /= 2;
  }
  fit_tiles(demand, device, &plan);
  if (plan.regime != GpuRegime::kGrid) {
    plan.blocks = plan.cluster * demand.samples;
    // Where there are more blocks than multiprocessors, several are to find room on one.
    const bool few = plan.blocks <= device.multiprocessors;
    const int64_t largest = few ? demand.rows : std::min(demand.rows, 2 * mean);
    keep_rows(demand, device, rows_per_block(largest, plan, plan.cluster), &plan);
  } else {
    plan.blocks = std::max<int64_t>(
        1, std::min(device.multiprocessors,
                    std::max(ceil_div(demand.rows, plan.pass_rows), demand.samples)));
    keep_rows(demand, device, std::min(demand.rows, kAloneRows), &plan);
  }
  if (plan.regime != GpuRegime::kBlock || plan.kept_rows < demand.rows) {
    plan.row_scratch = plan.slots * demand.rows * plan.row_stride;
    plan.sum_scratch = 2 * kCellSums * (demand.rows / kCellTile + demand.samples);
  }
  return plan;
}

// For at least one sample. `forced` names a regime that groups of rows take wherever it is
// possible, for tests and measurements; null or "" leaves the choice to the planner. Rows that are
// samples themselves need no other block.
inline CellPlan plan_cells(const CellDemand& demand, const GpuDevice& device,
                           const char* forced = nullptr) {
  return demand.grouped ? plan_cell_groups(demand, device, forced) : plan_cell_rows(demand, device);
}

}  // namespace deq
