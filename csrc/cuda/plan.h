// How a two-pass op over [problems, dim] is launched on a GPU: a pure function, free of CUDA.
//
// Every sum over the dimension is taken tile by tile and the tiles are added in one fixed tree,
// whoever computed them. So the regime may follow the batch size and the device, and changes no
// bit of a result.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "algebra/macros.h"

namespace deq {

constexpr int kGpuWarp = 32;
constexpr int kGpuThreads = 256;
constexpr int kGpuWarps = kGpuThreads / kGpuWarp;
// Elements of one tile that one thread holds in registers.
constexpr int kGpuItems = 8;
constexpr int kGpuTile = kGpuThreads * kGpuItems;
// Rows whose dots are collected between two barriers of a block.
constexpr int kRowsPerFlush = 32;
// Values that a warp hands over at a barrier: two dots per row, and a few sums of the op's own.
constexpr int kFlushedDots = 2 * kRowsPerFlush;
constexpr int kFlushValues = kFlushedDots + 4;
// An op's decision is handed on in the place of the first two totals.
constexpr int kDecisionDoubles = 2;
// Without rows to keep, more tiles than this per block stream better from a grid.
constexpr int64_t kStreamedTiles = 8;

enum class GpuRegime {
  kBlock,    // one block does both passes over a problem
  kCluster,  // the blocks of a cluster share a problem, and sums through distributed shared memory
  kGrid,     // three launches: tiles, conclusions, tiles
};

inline const char* regime_name(GpuRegime regime) {
  switch (regime) {
    case GpuRegime::kBlock:
      return "block";
    case GpuRegime::kCluster:
      return "cluster";
    default:
      return "grid";
  }
}

struct GpuDevice {
  int64_t multiprocessors;
  int64_t shared_bytes;  // that one block may have
  int64_t max_cluster;   // blocks; 1 where there are no clusters
};

// What an op asks of its launch, per problem (a sample, or one right-hand side of it).
struct GpuDemand {
  int64_t problems;
  int64_t dim;
  int64_t rows;           // read by both passes and worth keeping on chip
  int64_t row_bytes;      // per element of them
  int64_t sums;           // that the first pass leaves, kDecisionDoubles at least
  int64_t table_doubles;  // of the rank-sized table that the conclusion works on
};

// How many rows a thread reads before it uses the first: 128 bytes in flight.
DEQ_HOST_DEVICE constexpr int rows_per_group(int64_t row_bytes) {
  return static_cast<int>(16 / row_bytes);
}

inline int64_t gpu_tiles(int64_t dim) { return (dim + kGpuTile - 1) / kGpuTile; }

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Where a block keeps what in its dynamic shared memory, in bytes from the start. A thread keeps
// its own elements of a row in slots of 16 bytes.
struct SharedLayout {
  int64_t decision;  // [kDecisionDoubles] doubles
  int64_t totals;    // [sums] doubles
  int64_t partials;  // [sums, own tiles] doubles
  int64_t flush;     // [kGpuWarps, kFlushValues] doubles
  int64_t table;     // [table_doubles] doubles
  int64_t kept;      // [kept_rows, row_slots, kGpuThreads] slots
  int64_t row_slots;
  int64_t bytes;
};

inline SharedLayout shared_layout(const GpuDemand& demand, int64_t own_tiles, int64_t kept_rows) {
  constexpr int64_t kSlot = 16;
  constexpr int64_t kDouble = sizeof(double);
  SharedLayout layout = {};
  layout.totals = kDecisionDoubles * kDouble;
  layout.partials = layout.totals + demand.sums * kDouble;
  layout.flush = layout.partials + demand.sums * own_tiles * kDouble;
  layout.table = layout.flush + kGpuWarps * kFlushValues * kDouble;
  layout.kept = round_up(layout.table + demand.table_doubles * kDouble, kSlot);
  // A short row needs only the slots that its elements fill.
  const int64_t row_elements = std::min(demand.dim, own_tiles * kGpuTile);
  const int64_t slot_elements = kGpuThreads * kSlot / std::max<int64_t>(demand.row_bytes, 1);
  layout.row_slots = (row_elements + slot_elements - 1) / slot_elements;
  layout.bytes = layout.kept + kept_rows * layout.row_slots * kGpuThreads * kSlot;
  return layout;
}

struct GpuPlan {
  GpuRegime regime;
  int64_t cluster;    // blocks per problem; 1 but for kCluster
  int64_t tiles;      // per problem
  int64_t own_tiles;  // per block, at most
  int64_t kept_rows;
  int64_t launches;
  SharedLayout shared;  // of the kernel that holds the table

  bool table_staged;  // whether the conclusion works on a copy of the table in shared memory
};

inline GpuPlan plan_fused(const GpuDemand& demand, const GpuDevice& device, int64_t cluster) {
  GpuPlan plan = {};
  plan.regime = cluster == 1 ? GpuRegime::kBlock : GpuRegime::kCluster;
  plan.cluster = cluster;
  plan.tiles = gpu_tiles(demand.dim);
  plan.own_tiles = std::max<int64_t>(1, (plan.tiles + cluster - 1) / cluster);
  plan.launches = 1;
  plan.table_staged = true;
  const SharedLayout none = shared_layout(demand, plan.own_tiles, 0);
  const SharedLayout one = shared_layout(demand, plan.own_tiles, 1);
  const int64_t room = std::max<int64_t>(0, device.shared_bytes - none.bytes);
  const int64_t row = std::max<int64_t>(1, one.bytes - none.bytes);
  plan.kept_rows = std::min(demand.rows, room / row);
  if (plan.kept_rows < demand.rows) {  // a group of rows is kept as a whole or not at all
    plan.kept_rows -= plan.kept_rows % rows_per_group(demand.row_bytes);
  }
  plan.shared = shared_layout(demand, plan.own_tiles, plan.kept_rows);
  return plan;
}

inline GpuPlan plan_grid(const GpuDemand& demand, const GpuDevice& device) {
  GpuPlan plan = {};
  plan.regime = GpuRegime::kGrid;
  plan.cluster = 1;
  plan.tiles = gpu_tiles(demand.dim);
  plan.own_tiles = 1;
  plan.launches = 3;
  plan.shared = shared_layout(demand, 0, 0);
  plan.table_staged = plan.shared.bytes <= device.shared_bytes;
  if (!plan.table_staged) {
    GpuDemand without = demand;
    without.table_doubles = 0;
    plan.shared = shared_layout(without, 0, 0);
  }
  return plan;
}

// `forced` names a regime that is taken wherever it is possible, for tests and measurements; null
// or "" leaves the choice to the planner.
//
// The planner wants every row kept on chip, by as few blocks as that takes: then device memory is
// read once. Where that is impossible it takes the largest cluster if half of the rows stay, as
// the rest of a sample in flight is likely to be found in the second-level cache. It goes on to
// spread a problem over more blocks while multiprocessors would idle. Everything else goes to a
// grid. These thresholds are derived from sizes, not measured.
inline GpuPlan plan_gpu(const GpuDemand& demand, const GpuDevice& device,
                        const char* forced = nullptr) {
  const bool free_choice = forced == nullptr || *forced == '\0';
  auto is_forced = [&](GpuRegime regime) {
    return !free_choice && std::strcmp(forced, regime_name(regime)) == 0;
  };
  const GpuPlan grid = plan_grid(demand, device);
  if (is_forced(GpuRegime::kGrid)) {
    return grid;
  }
  auto possible = [&](const GpuPlan& plan) { return plan.shared.bytes <= device.shared_bytes; };
  if (is_forced(GpuRegime::kBlock)) {
    const GpuPlan block = plan_fused(demand, device, 1);
    return possible(block) ? block : grid;
  }
  if (is_forced(GpuRegime::kCluster)) {
    int64_t cluster = 2;
    while (cluster < grid.tiles && 2 * cluster <= device.max_cluster) {
      cluster *= 2;
    }
    const GpuPlan plan = plan_fused(demand, device, cluster);
    return cluster <= device.max_cluster && possible(plan) ? plan : grid;
  }
  GpuPlan chosen = grid;
  for (int64_t cluster = 1; cluster <= device.max_cluster; cluster *= 2) {
    const GpuPlan plan = plan_fused(demand, device, cluster);
    const bool last = 2 * cluster > device.max_cluster;
    const bool keeps_enough =
        plan.kept_rows == demand.rows || (last && 2 * plan.kept_rows >= demand.rows &&
                                          2 * demand.problems * cluster >= device.multiprocessors);
    const bool streams = demand.rows > 0 || plan.own_tiles <= kStreamedTiles;
    if (possible(plan) && keeps_enough && streams) {
      chosen = plan;
      break;
    }
  }
  while (chosen.regime != GpuRegime::kGrid && 2 * chosen.cluster <= device.max_cluster &&
         chosen.cluster < chosen.tiles &&
         2 * demand.problems * chosen.cluster <= device.multiprocessors) {
    chosen = plan_fused(demand, device, 2 * chosen.cluster);
  }
  return chosen;
}

// The demand of a Broyden step, which the Python module reports on.
inline GpuDemand broyden_step_demand(int64_t batch, int64_t dim, int64_t capacity,
                                     int64_t history_bytes) {
  return {batch, dim, capacity, history_bytes, 2 + 2 * capacity, capacity * (capacity + 2)};
}

// The demand of an Anderson step, for `capacity` stored changes. Its second pass reads other rows
// than its first, so there are none to keep.
inline GpuDemand anderson_step_demand(int64_t batch, int64_t dim, int64_t capacity,
                                      int64_t history_bytes) {
  return {batch, dim, 0, history_bytes, 2 + 2 * capacity, 2 * capacity * capacity};
}

// The demand of either half of a GMRES step, for a basis of `columns` vectors.
inline GpuDemand gmres_step_demand(int64_t batch, int64_t dim, int64_t columns,
                                   int64_t basis_bytes) {
  return {batch, dim, columns, basis_bytes, 4 + columns, 0};
}

// The demand of a product with a low-rank inverse.
inline GpuDemand product_demand(int64_t problems, int64_t dim, int64_t capacity,
                                int64_t history_bytes, int64_t table_doubles) {
  return {problems, dim, capacity, history_bytes, kDecisionDoubles + capacity, table_doubles};
}

}  // namespace deq
