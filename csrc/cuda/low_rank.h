// The sum-form inverse H = scale I + sum_i u_i v_i^T as two-pass ops: product, and append.
// Formulas: docs/algebra.md, section 2. The CPU's counterpart: csrc/cpu/low_rank.cpp.
#pragma once

#include <cstdint>

#include "algebra/multiply_add.h"
#include "algebra/sherman_morrison.h"
#include "algebra/types.h"
#include "cuda/stored_rows.h"
#include "cuda/two_pass.h"

namespace deq {

template <typename Block>
DEQ_DEVICE int64_t checked_rank(const Block& block, int64_t rank, int64_t capacity) {
  block.check(rank >= 0 && rank <= capacity, "rank must fit the rows stored");
  return rank;
}

// y = scale x + sum_i u_i <v_i, x>. A problem is one right-hand side of one sample.
template <typename state_t, typename history_type>
struct LowRankProduct {
  using history_t = history_type;
  using accum_t = accumulate_t<state_t>;
  static constexpr int kVector = Rows<history_t>::kVector;
  // Sums: room for the decision, <v_i, x> for all i.
  static constexpr int64_t kFirstSum = kDecisionDoubles;

  const state_t* x;  // [batch, columns, dim]
  state_t* y;        // [batch, columns, dim]
  StoredRows<history_t> u;
  StoredRows<history_t> v;
  const int64_t* rank;  // [batch]
  int64_t capacity;
  int64_t columns;
  int64_t dim;
  double scale;

  struct View {
    int rank;
  };
  struct Decision {
    int64_t rank;
    int64_t valid;

    DEQ_DEVICE explicit operator bool() const { return valid != 0; }
  };

  DEQ_DEVICE int64_t sample(int64_t problem) const { return problem / columns; }
  DEQ_DEVICE bool runs(int64_t) const { return true; }

  template <typename Block>
  DEQ_DEVICE View view(const Block& block, int64_t problem) const {
    return {static_cast<int>(checked_rank(block, rank[sample(problem)], capacity))};
  }
  DEQ_DEVICE int64_t sums(const View& view) const { return kFirstSum + view.rank; }
  // The second pass reads other rows than the first.
  DEQ_DEVICE int rows(const View&) const { return 0; }
  DEQ_DEVICE Rows<history_t> tile_rows(int64_t problem, const Tile& tile) const {
    return v.tile_rows(sample(problem), tile);
  }
  DEQ_DEVICE int64_t table_doubles(const View&) const { return 0; }
  DEQ_DEVICE double* table(int64_t) const { return nullptr; }

  template <typename Block>
  DEQ_DEVICE void measure(const Block& block, const View& view, int64_t problem, const Tile& tile,
                          const Rows<history_t>& rows, double* flush, const TileSums& sums) const {
    accum_t items[kGpuItems];
    load_items<kVector>(block, x + problem * dim + tile.begin, tile.size, items);
    const TileSums dots = sums.from(kFirstSum);
    dot_rows<false>(block, rows, view.rank, items, items, flush, dots, dots);
  }

  template <typename Block>
  DEQ_DEVICE void conclude(const Block& block, const View& view, int64_t, double*, bool, double*,
                           Decision* decision) const {
    if (block.lane() == 0) {
      *decision = {view.rank, 1};
    }
  }

  template <typename Block>
  DEQ_DEVICE void apply(const Block& block, int64_t problem, const Tile& tile,
                        const Rows<history_t>&, const double* totals,
                        const Decision& decision) const {
    accum_t items[kGpuItems];
    load_items<kVector>(block, x + problem * dim + tile.begin, tile.size, items);
    combine_rows(block, u.tile_rows(sample(problem), tile), static_cast<int>(decision.rank),
                 totals + kFirstSum, static_cast<accum_t>(scale), items);
    store_items<kVector>(block, items, tile.size, y + problem * dim + tile.begin);
  }
};

// v = H^T s and u = (s - H y) / <v, y> in row `rank`.
template <typename state_t, typename history_type>
struct LowRankAppend {
  using history_t = history_type;
  using accum_t = accumulate_t<state_t>;
  static constexpr int kVector = Rows<history_t>::kVector;
  // Sums: <s, y>, ||s||^2, ||y||^2, nothing, <u_i, s> for all i, <v_i, y> for all i.
  static constexpr int64_t kFirstSum = 0;
  static constexpr int kOwnDots = 4;

  StoredRows<history_t> u;
  StoredRows<history_t> v;
  int64_t* rank;     // [batch]
  const state_t* s;  // [batch, dim]
  const state_t* y;  // [batch, dim]
  bool* appended;    // [batch]
  int64_t capacity;
  int64_t dim;
  double scale;

  struct View {
    int rank;
  };
  struct Decision {
    double inverse;  // 1 / <v, y>, or 0 where the pair is refused
    int64_t rank;

    DEQ_DEVICE explicit operator bool() const { return inverse != 0.0; }
  };

  DEQ_DEVICE bool runs(int64_t) const { return true; }

  template <typename Block>
  DEQ_DEVICE View view(const Block& block, int64_t sample) const {
    return {static_cast<int>(checked_rank(block, rank[sample], capacity))};
  }
  DEQ_DEVICE int64_t sums(const View& view) const { return kOwnDots + 2 * view.rank; }
  DEQ_DEVICE int rows(const View&) const { return 0; }
  DEQ_DEVICE Rows<history_t> tile_rows(int64_t sample, const Tile& tile) const {
    return u.tile_rows(sample, tile);
  }
  DEQ_DEVICE int64_t table_doubles(const View&) const { return 0; }
  DEQ_DEVICE double* table(int64_t) const { return nullptr; }

  template <typename Block>
  DEQ_DEVICE void measure(const Block& block, const View& view, int64_t sample, const Tile& tile,
                          const Rows<history_t>& u_rows, double* flush,
                          const TileSums& sums) const {
    accum_t s_items[kGpuItems];
    accum_t y_items[kGpuItems];
    load_items<kVector>(block, s + sample * dim + tile.begin, tile.size, s_items);
    load_items<kVector>(block, y + sample * dim + tile.begin, tile.size, y_items);
    double own[kOwnDots] = {};
    DEQ_UNROLL
    for (int i = 0; i < kGpuItems; ++i) {
      const double s_i = static_cast<double>(s_items[i]);
      const double y_i = static_cast<double>(y_items[i]);
      own[0] = multiply_add(s_i, y_i, own[0]);
      own[1] = multiply_add(s_i, s_i, own[1]);
      own[2] = multiply_add(y_i, y_i, own[2]);
    }
    put_own_sums(block, own, flush);
    const TileSums u_dots = sums.from(kOwnDots);
    dot_rows<false>(block, u_rows, view.rank, s_items, s_items, flush, u_dots, u_dots);
    const TileSums v_dots = sums.from(kOwnDots + view.rank);
    dot_rows<false>(block, v.tile_rows(sample, tile), view.rank, y_items, y_items, flush, v_dots,
                    v_dots);
    add_own_sums(block, view.rank, kOwnDots, flush, sums);
  }

  template <typename Block>
  DEQ_DEVICE void conclude(const Block& block, const View& view, int64_t sample, double*, bool,
                           double* totals, Decision* decision) const {
    if (block.lane() != 0) {
      return;
    }
    const double* const u_dots = totals + kOwnDots;
    double inverse = 0.0;
    if (view.rank < capacity && dim > 0) {
      inverse = sherman_morrison_scale(totals[0], totals[1], totals[2], scale, view.rank, u_dots,
                                       u_dots + view.rank);
    }
    *decision = {inverse, view.rank};
    appended[sample] = inverse != 0.0;
    rank[sample] = view.rank + (inverse != 0.0 ? 1 : 0);
  }

  template <typename Block>
  DEQ_DEVICE void apply(const Block& block, int64_t sample, const Tile& tile,
                        const Rows<history_t>& u_rows, const double* totals,
                        const Decision& decision) const {
    const int r = static_cast<int>(decision.rank);
    const double* const u_dots = totals + kOwnDots;
    accum_t s_items[kGpuItems];
    accum_t items[kGpuItems];
    load_items<kVector>(block, y + sample * dim + tile.begin, tile.size, items);
    load_items<kVector>(block, s + sample * dim + tile.begin, tile.size, s_items);
    combine_rows(block, u_rows, r, u_dots + r, static_cast<accum_t>(scale), items);
    const accum_t inverse = static_cast<accum_t>(decision.inverse);
    DEQ_UNROLL
    for (int i = 0; i < kGpuItems; ++i) {
      items[i] = multiply_add(inverse, s_items[i], -(inverse * items[i]));
    }
    store_items<kVector>(block, items, tile.size, u.row(sample, r) + tile.begin);

    combine_rows(block, v.tile_rows(sample, tile), r, u_dots, static_cast<accum_t>(scale), s_items);
    store_items<kVector>(block, s_items, tile.size, v.row(sample, r) + tile.begin);
  }
};

}  // namespace deq
