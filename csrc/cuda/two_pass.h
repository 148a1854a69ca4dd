// The shape that all ops share: a pass over a sample's tiles that leaves sums, a conclusion drawn
// once from them, and a second pass over the same tiles.
//
// An op states what happens; this file states who does it. The fused pass runs in one block, or in
// the blocks of a cluster, which keep rows in shared memory from the first pass to the second. The
// grid passes are three kernels. All of them sum in the same order.
//
// An op provides, for a problem (a sample, or one right-hand side of it):
//   history_t                            type of the rows, which sets the geometry of a tile
//   Decision                             plain data of kDecisionDoubles doubles at most, or
//                                        NoSecondPass
//   kFirstSum                            the first sum that `measure` leaves: 0, or
//                                        kDecisionDoubles where there are none but dots
//   dim
//   bool runs(problem)                   false: nothing of the problem is touched
//   View view(block, problem)            what is read before anything is written
//   int64_t sums(view)                   one more than the last sum
//   int rows(view)                       rows worth keeping, which both passes read
//   Rows<history_t> tile_rows(problem, tile)
//   int64_t table_doubles(view)          how much of the table the conclusion reads
//   double* table(problem)
//   measure(block, view, problem, tile, rows, flush, sums)
//   conclude(block, view, problem, table, staged, totals, decision), by the lanes of one warp;
//                                        the decision is memory that all of them see
//   apply(block, problem, tile, rows, totals, decision)
#pragma once

#include <cstdint>

#include "algebra/macros.h"
#include "cuda/plan.h"
#include "cuda/rows.h"
#include "cuda/tile.h"

namespace deq {

// The lanes of a warp as the rank-sized algebra sees them.
template <typename Block>
struct WarpLanes {
  const Block& block;

  DEQ_DEVICE int64_t index() const { return block.lane(); }
  DEQ_DEVICE int64_t count() const { return kGpuWarp; }
  DEQ_DEVICE bool first() const { return block.lane() == 0; }
  DEQ_DEVICE void sync() const { block.sync_warp(); }
};

// The decision of an op that has said everything with its conclusion.
struct NoSecondPass {
  DEQ_DEVICE explicit operator bool() const { return false; }
};

struct Tile {
  int64_t begin;  // first element of the sample
  int size;
};

DEQ_DEVICE Tile tile_at(int64_t tile, int64_t dim) {
  const int64_t begin = tile * kGpuTile;
  const int64_t rest = dim - begin;
  return {begin, static_cast<int>(rest < kGpuTile ? rest : kGpuTile)};
}

// The sums that a pass has left for one tile: value i at from[i * stride].
struct LeftSums {
  const double* from;
  int64_t stride;
};

// totals[i] = sum over the tiles of sum i of of_tile(tile) for i in [first, last): lanes take turns
// at the tiles, then a tree over the lanes. A warp has several sums in hand, so that it waits for
// memory once.
template <typename Block, typename OfTile>
DEQ_DEVICE void gather_totals(const Block& block, int64_t first, int64_t last, int64_t tiles,
                              double* totals, const OfTile& of_tile) {
  constexpr int kInHand = 8;
  for (int64_t i = first + block.warp() * kInHand; i < last; i += kGpuWarps * kInHand) {
    double sums[kInHand] = {};
    for (int64_t tile = block.lane(); tile < tiles; tile += kGpuWarp) {
      const LeftSums left = of_tile(tile);
      DEQ_UNROLL
      for (int n = 0; n < kInHand; ++n) {
        if (i + n < last) {
          sums[n] += left.from[(i + n) * left.stride];
        }
      }
    }
    const double total = sum_over_warp(block, sums);
    constexpr int lanes_each = kGpuWarp / kInHand;
    const int64_t mine = i + block.lane() / lanes_each;
    if (block.lane() % lanes_each == 0 && mine < last) {
      totals[mine] = total;
    }
  }
}

template <typename Block>
DEQ_DEVICE void copy_doubles(const Block& block, const double* from, int64_t count, double* to) {
  for (int64_t i = block.thread(); i < count; i += kGpuThreads) {
    to[i] = from[i];
  }
}

// The decision lies over the first totals, which nobody reads once it is there.
template <typename Decision>
DEQ_DEVICE Decision read_decision(const double* totals) {
  static_assert(sizeof(Decision) <= kDecisionDoubles * sizeof(double), "lies over two totals");
  // Through whole doubles: a struct of flags would be read byte by byte.
  const double words[kDecisionDoubles] = {totals[0], totals[1]};
  Decision decision;
  memcpy(&decision, words, sizeof(decision));
  return decision;
}

template <typename Decision>
DEQ_DEVICE void write_decision(const Decision& decision, double* totals) {
  double words[kDecisionDoubles] = {};
  memcpy(words, &decision, sizeof(decision));
  totals[0] = words[0];
  totals[1] = words[1];
}

// The conclusion of one problem, by one block; every thread may read the totals and the decision
// after the next barrier.
template <typename Op, typename Block, typename OfTile>
DEQ_DEVICE void conclude_problem(const Block& block, const Op& op, const typename Op::View& view,
                                 int64_t problem, int64_t tiles, double* staged_table,
                                 typename Op::Decision* decision, double* totals,
                                 const OfTile& of_tile) {
  if (staged_table != nullptr) {
    copy_doubles(block, op.table(problem), op.table_doubles(view), staged_table);
  }
  gather_totals(block, Op::kFirstSum, op.sums(view), tiles, totals, of_tile);
  block.sync();
  if (block.warp() == 0) {
    double* const table = staged_table != nullptr ? staged_table : op.table(problem);
    op.conclude(block, view, problem, table, staged_table != nullptr, totals, decision);
    block.sync_warp();
    if (block.lane() == 0) {
      write_decision(*decision, totals);
    }
  }
}

// Starts the copies of the rows that stay on chip, one group of copies per tile.
template <typename Op, typename Block>
DEQ_DEVICE void fetch_kept_rows(const Block& block, const Rows<typename Op::history_t>& rows,
                                int count) {
  using R = Rows<typename Op::history_t>;
  for (int j = 0; j < count; ++j) {
    DEQ_UNROLL
    for (int s = 0; s < R::kSegments; ++s) {
      if (s * kGpuThreads * R::kVector >= rows.size) {
        continue;
      }
      const int i = item_begin<R::kVector>(block, s);
      const auto* from = rows.data + j * rows.stride + i;
      char* to = rows.kept.slots + j * rows.kept.row_bytes + s * R::kSlotStride;
      if (rows.aligned && i + R::kVector <= rows.size) {
        block.copy_async(from, to);
      } else {
        store_pack(gather_slot(from, rows.size - i), to);
      }
    }
  }
  block.commit_copies();
}

// Both passes over one problem by a block, or by a cluster whose blocks take neighbouring tiles.
template <typename Op, typename Block>
DEQ_DEVICE void fused_pass(const Block& block, const Op& op, const SharedLayout& layout,
                           int64_t tiles, int64_t own_tiles, int64_t kept_rows) {
  using Decision = typename Op::Decision;
  const int64_t problem = block.problem();
  if (!op.runs(problem)) {
    return;
  }
  using R = Rows<typename Op::history_t>;
  const typename Op::View view = op.view(block, problem);
  char* const shared = block.shared();
  double* const totals = reinterpret_cast<double*>(shared + layout.totals);
  double* const partials = reinterpret_cast<double*>(shared + layout.partials);
  double* const flush = reinterpret_cast<double*>(shared + layout.flush);
  const int64_t first_tile = block.rank() * own_tiles;
  const int64_t rest = tiles - first_tile;
  const int64_t mine = rest < 0 ? 0 : (rest < own_tiles ? rest : own_tiles);
  const int stored = op.rows(view);
  const int kept = kept_rows < stored ? static_cast<int>(kept_rows) : stored;
  auto rows_of = [&](int64_t own) {
    R rows = op.tile_rows(problem, tile_at(first_tile + own, op.dim));
    rows.kept = {shared + layout.kept + own * R::kSegments * R::kSlotStride +
                     block.thread() * static_cast<int64_t>(sizeof(Slot)),
                 layout.row_slots * R::kSlotStride, static_cast<int>(kept_rows)};
    return rows;
  };
  for (int64_t own = 0; stored > 0 && own < mine; ++own) {
    fetch_kept_rows<Op>(block, rows_of(own), kept);
  }
  for (int64_t own = 0; own < mine; ++own) {
    if (stored > 0) {
      block.wait_for_copies(mine - 1 - own);
    }
    op.measure(block, view, problem, tile_at(first_tile + own, op.dim), rows_of(own), flush,
               TileSums{partials + own, own_tiles});
  }
  block.sync_cluster();
  if (block.rank() == 0) {
    conclude_problem(
        block, op, view, problem, tiles, reinterpret_cast<double*>(shared + layout.table),
        reinterpret_cast<Decision*>(shared + layout.decision), totals, [&](int64_t tile) {
          // The tiles of a cluster are few; numbers of 64 bits are divided by a subroutine.
          const uint32_t rank = static_cast<uint32_t>(tile) / static_cast<uint32_t>(own_tiles);
          const double* there = block.of_rank(partials, static_cast<int>(rank));
          return LeftSums{there + (tile - rank * own_tiles), own_tiles};
        });
  }
  block.sync_cluster();
  if (block.ranks() > 1) {
    if (block.rank() != 0) {
      copy_doubles(block, block.of_rank(totals, 0), op.sums(view), totals);
    }
    // Nobody leaves, and nobody overwrites, before all have copied.
    block.sync_cluster();
  }
  const Decision decision = read_decision<Decision>(totals);
  if (!decision) {
    return;
  }
  for (int64_t own = 0; own < mine; ++own) {
    op.apply(block, problem, tile_at(first_tile + own, op.dim), rows_of(own), totals, decision);
  }
}

// Scratch of the grid passes, per problem: partial sums [sums, tiles], then totals [sums].
struct GridScratch {
  double* data;
  int64_t sums;
  int64_t tiles;

  DEQ_HOST_DEVICE static int64_t size(int64_t sums, int64_t tiles) { return sums * (tiles + 1); }
  DEQ_DEVICE double* partials(int64_t problem) const { return data + problem * size(sums, tiles); }
  DEQ_DEVICE double* totals(int64_t problem) const { return partials(problem) + sums * tiles; }
};

// One block per problem and tile.
template <typename Op, typename Block>
DEQ_DEVICE void measure_pass(const Block& block, const Op& op, const GridScratch& scratch) {
  const int64_t problem = block.index() / scratch.tiles;
  const int64_t tile = block.index() % scratch.tiles;
  if (!op.runs(problem)) {
    return;
  }
  const Tile place = tile_at(tile, op.dim);
  op.measure(block, op.view(block, problem), problem, place, op.tile_rows(problem, place),
             reinterpret_cast<double*>(block.shared()),
             TileSums{scratch.partials(problem) + tile, scratch.tiles});
}

// One block per problem. `staged` says whether the table is copied to shared memory.
template <typename Op, typename Block>
DEQ_DEVICE void conclude_pass(const Block& block, const Op& op, const GridScratch& scratch,
                              const SharedLayout& layout, bool staged) {
  using Decision = typename Op::Decision;
  const int64_t problem = block.index();
  double* const totals = scratch.totals(problem);
  if (!op.runs(problem)) {
    if (block.thread() == 0) {
      write_decision(Decision{}, totals);
    }
    return;
  }
  const typename Op::View view = op.view(block, problem);
  const double* const partials = scratch.partials(problem);
  double* const local = reinterpret_cast<double*>(block.shared() + layout.totals);
  // All threads have taken their view before the conclusion changes what it was taken from.
  block.sync();
  conclude_problem(block, op, view, problem, scratch.tiles,
                   staged ? reinterpret_cast<double*>(block.shared() + layout.table) : nullptr,
                   reinterpret_cast<Decision*>(block.shared() + layout.decision), local,
                   [&](int64_t tile) { return LeftSums{partials + tile, scratch.tiles}; });
  block.sync();
  copy_doubles(block, local, op.sums(view), totals);
}

// One block per problem and tile.
template <typename Op, typename Block>
DEQ_DEVICE void apply_pass(const Block& block, const Op& op, const GridScratch& scratch) {
  using Decision = typename Op::Decision;
  const int64_t problem = block.index() / scratch.tiles;
  const double* const totals = scratch.totals(problem);
  const Decision decision = read_decision<Decision>(totals);
  if (!decision) {
    return;
  }
  const Tile place = tile_at(block.index() % scratch.tiles, op.dim);
  op.apply(block, problem, place, op.tile_rows(problem, place), totals, decision);
}

// An op that is a second pass alone, apply(block, problem, tile): one block per problem and tile.
template <typename Op, typename Block>
DEQ_DEVICE void tile_pass(const Block& block, const Op& op, int64_t tiles) {
  op.apply(block, block.index() / tiles, tile_at(block.index() % tiles, op.dim));
}

}  // namespace deq
