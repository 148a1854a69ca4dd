// The two halves of the sum-form product, each by itself: dots with the rows, which is a first pass
// and a conclusion, and combinations of rows, which is a second pass. All arithmetic is in float64:
// per element of a row one conversion and one multiplication, which keep up with memory.
// Formulas: docs/algebra.md, section 2. The CPU's counterpart: csrc/cpu/low_rank_halves.cpp.
#pragma once

#include <cstdint>

#include "cuda/low_rank.h"

namespace deq {

// <row_i, x> for i < count, and zero for the others. A problem is one right-hand side of one
// sample.
template <typename state_t, typename history_type>
struct LowRankDots {
  using history_t = history_type;
  using Decision = NoSecondPass;
  static constexpr int kVector = Rows<history_t>::kVector;
  // Sums: room for the decision, <row_i, x> for all i.
  static constexpr int64_t kFirstSum = kDecisionDoubles;

  const state_t* x;  // [batch, columns, dim]
  double* dots;      // [batch, columns, capacity]
  StoredRows<history_t> stored;
  const int64_t* count;  // [batch]
  int64_t capacity;
  int64_t columns;
  int64_t dim;

  struct View {
    int count;
  };

  DEQ_DEVICE int64_t sample(int64_t problem) const { return problem / columns; }
  DEQ_DEVICE bool runs(int64_t) const { return true; }

  template <typename Block>
  DEQ_DEVICE View view(const Block& block, int64_t problem) const {
    return {static_cast<int>(checked_rank(block, count[sample(problem)], capacity))};
  }
  DEQ_DEVICE int64_t sums(const View& view) const { return kFirstSum + view.count; }
  DEQ_DEVICE int rows(const View&) const { return 0; }
  DEQ_DEVICE Rows<history_t> tile_rows(int64_t problem, const Tile& tile) const {
    return stored.tile_rows(sample(problem), tile);
  }
  DEQ_DEVICE int64_t table_doubles(const View&) const { return 0; }
  DEQ_DEVICE double* table(int64_t) const { return nullptr; }

  template <typename Block>
  DEQ_DEVICE void measure(const Block& block, const View& view, int64_t problem, const Tile& tile,
                          const Rows<history_t>& rows, double* flush, const TileSums& sums) const {
    if (view.count == 0) {
      return;
    }
    accumulate_t<state_t> items[kGpuItems];
    load_items<kVector>(block, x + problem * dim + tile.begin, tile.size, items);
    const TileSums places = sums.from(kFirstSum);
    dot_rows<false, double>(block, rows, view.count, items, items, flush, places, places);
  }

  template <typename Block>
  DEQ_DEVICE void conclude(const Block& block, const View& view, int64_t problem, double*, bool,
                           double* totals, Decision* decision) const {
    for (int64_t i = block.lane(); i < capacity; i += kGpuWarp) {
      dots[problem * capacity + i] = i < view.count ? totals[kFirstSum + i] : 0.0;
    }
    if (block.lane() == 0) {
      *decision = {};
    }
  }

  template <typename Block>
  DEQ_DEVICE void apply(const Block&, int64_t, const Tile&, const Rows<history_t>&, const double*,
                        const Decision&) const {}
};

// y = scale x + sum_{i < count} c_i row_i. With scale 0, x is not read.
template <typename state_t, typename history_type>
struct LowRankCombination {
  using history_t = history_type;
  static constexpr int kVector = Rows<history_t>::kVector;

  const state_t* x;  // [batch, columns, dim]
  state_t* y;        // [batch, columns, dim]
  StoredRows<history_t> stored;
  const int64_t* count;        // [batch]
  const double* coefficients;  // [batch, columns, capacity]
  int64_t capacity;
  int64_t columns;
  int64_t dim;
  double scale;

  template <typename Block>
  DEQ_DEVICE void apply(const Block& block, int64_t problem, const Tile& tile) const {
    const int64_t sample = problem / columns;
    const int rows = static_cast<int>(checked_rank(block, count[sample], capacity));
    double items[kGpuItems] = {};
    if (scale != 0.0) {
      load_items<kVector>(block, x + problem * dim + tile.begin, tile.size, items);
    }
    combine_rows(block, stored.tile_rows(sample, tile), rows, coefficients + problem * capacity,
                 scale, items);
    store_items<kVector>(block, items, tile.size, y + problem * dim + tile.begin);
  }
};

}  // namespace deq
