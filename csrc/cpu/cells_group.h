// The iteration of a sample that is a run of rows, a graph: by one thread, or by all of them, which
// share the rows of each step.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "cpu/cells_problem.h"

namespace deq {

template <typename state_t>
class CellGroup {
 public:
  using accum_t = accumulate_t<state_t>;
  using Problem = CellProblem<state_t>;

  explicit CellGroup(const Problem& problem)
      : problem_(problem),
        stride_(problem.stride),
        scaled_(problem.scale.values != nullptr),
        approximate_(problem.packed_pairs != nullptr) {}

  // Iterates the rows [first, first + rows) of a sample that runs. for_each_tile(count, body) calls
  // body(tile, room) for every tile, with room for kCellRoom elements of every column.
  template <typename ForEachTile>
  void solve(int64_t sample, int64_t first, int64_t rows, const ForEachTile& for_each_tile) {
    allocate(rows);
    const int64_t tiles = (rows + kCellRows - 1) / kCellRows;
    double* sums = sums_.resize(kCellSums * tiles);
    const auto rows_of = [&](int64_t tile) {
      const int64_t begin = tile * kCellRows;
      return Rows{first, begin, std::min(kCellRows, rows - begin)};
    };
    // The first evaluation of all becomes the best one; one that has gone before may not be beaten.
    const bool keep = problem_.counters[sample * kCounterColumns + kSteps] > 0;
    for_each_tile(tiles, [&](int64_t tile, accum_t*) { sums[tile] = load(rows_of(tile), keep); });
    const auto is_zero = [](double nonzero) { return nonzero == 0.0; };
    zero_ = problem_.finite && std::all_of(sums, sums + tiles, is_zero);
    Secant last;
    CellPrecision precision(approximate_);
    while (true) {
      const accum_t unit = last.unit<accum_t>();
      for_each_tile(tiles, [&](int64_t tile, accum_t* room) {
        step(rows_of(tile), precision.exact(), unit, room, sums + kCellSums * tile);
      });
      zero_ = false;
      double total[kCellSums];
      add_sums(sums, tiles, total);
      const CellDecision decision = problem_.decide(sample, total, &last, &precision);
      const accum_t* evaluated = z_;
      if (decision.improved) {
        std::swap(best_, z_);
      }
      if (decision.action == CellAction::kStop) {
        const accum_t* result = problem_.fixed_steps ? next_ : best_;
        for_each_tile(tiles, [&](int64_t tile, accum_t*) { store(result, rows_of(tile)); });
        return;
      }
      // What z_ points to is now either the old z or the old best, and not needed any more, but for
      // the change from the old z.
      if (!problem_.accelerate) {
        std::swap(z_, next_);
        std::swap(scaled_z_, scaled_next_);
        continue;
      }
      const bool back = decision.action == CellAction::kGoBack;
      const accum_t* g = back ? last_ : next_;
      const accum_t* other = decision.secant == 0.0 ? g : last_;
      for_each_tile(tiles, [&](int64_t tile, accum_t*) {
        extrapolate(g, other, static_cast<accum_t>(decision.secant), evaluated, rows_of(tile),
                    precision.exact());
      });
      if (!back) {
        std::swap(last_, next_);
      }
    }
  }

 private:
  // `count` rows of a sample, from its row `begin` on; the sample's first row is `first`.
  struct Rows {
    int64_t first;
    int64_t begin;
    int64_t count;
  };

  void allocate(int64_t rows) {
    const int64_t size = rows * stride_;
    const int64_t parts = 4 + 2 * problem_.accelerate + 3 * scaled_ + approximate_;
    accum_t* buffer = memory_.resize(parts * size);
    const auto take = [&](accum_t*& part) {
      part = buffer;
      buffer += size;
    };
    take(z_), take(next_), take(best_), take(bias_);
    if (problem_.accelerate) {
      take(last_), take(residual_);
    }
    if (scaled_) {
      take(scale_), take(scaled_z_), take(scaled_next_);
    }
    if (approximate_) {
      take(product_);
      change_ = change_memory_.resize(size);
    }
  }

  // Returns 0 where c z is zero in all of the rows.
  double load(const Rows& rows, bool keep) {
    const int64_t at = rows.begin * stride_;
    const int64_t size = rows.count * stride_;
    const int64_t first = rows.first + rows.begin;
    problem_.load_rows({problem_.z, problem_.dim}, first, rows.count, z_ + at);
    problem_.load_rows(problem_.bias, first, rows.count, bias_ + at);
    if (problem_.accelerate) {
      std::fill_n(residual_ + at, size, accum_t(0));
    }
    if (scaled_) {
      problem_.load_rows(problem_.scale, first, rows.count, scale_ + at);
      cell_tiles<accum_t>().scale(z_ + at, scale_ + at, size, scaled_z_ + at);
    }
    if (keep) {
      std::copy_n(z_ + at, size, best_ + at);
    }
    const auto is_zero = [](accum_t x) { return x == accum_t(0); };
    const accum_t* mixed = (scaled_ ? scaled_z_ : z_) + at;
    return std::all_of(mixed, mixed + size, is_zero) ? 0.0 : 1.0;
  }

  void store(const accum_t* result, const Rows& rows) {
    problem_.store_rows(result + rows.begin * stride_, rows.first + rows.begin, rows.count);
  }

  // One evaluation, by its product or by that of the change from the one before.
  void step(const Rows& rows, bool exact, const accum_t& unit, accum_t* room, double* sums) {
    const int64_t at = rows.begin * stride_;
    CellFinish<accum_t> finish = {};
    finish.z = z_ + at;
    finish.next = next_ + at;
    finish.product = room;
    finish.base = (exact ? bias_ : product_) + at;
    finish.sum = approximate_ ? product_ + at : nullptr;
    if (zero_) {
      std::fill_n(room, rows.count * stride_, accum_t(0));
    } else if (exact) {
      multiply(rows, room);
    } else {
      multiply_change(rows, room);
    }
    if (problem_.accelerate) {
      finish.residual = residual_ + at;
      finish.units = &unit;
    } else if (scaled_) {
      finish.scale = scale_ + at;
      finish.scaled_next = scaled_next_ + at;
    }
    finish.sums = sums;
    problem_.finish(rows.count, finish);
  }

  // S (c z) V^T at the beginning of the room.
  void multiply(const Rows& rows, accum_t* room) {
    const CellTiles<accum_t>& tiles = cell_tiles<accum_t>();
    const accum_t* mixed = scaled_ ? scaled_z_ : z_;
    if (problem_.crow == nullptr) {
      mixed += rows.begin * stride_;
    } else {
      accum_t* gathered = room + rows.count * stride_;
      tiles.gather(problem_.crow + rows.first + rows.begin, problem_.col, problem_.values,
                   rows.first, mixed, stride_, rows.count, gathered);
      mixed = gathered;
    }
    tiles.multiply(problem_.packed, problem_.dim, stride_, rows.count, mixed, room);
  }

  // S change V^T there.
  void multiply_change(const Rows& rows, accum_t* room) {
    if constexpr (std::is_same_v<accum_t, float>) {
      const CellDifferences& differences = *cell_differences();
      const bfloat16* mixed = change_ + rows.begin * stride_;
      if (problem_.crow != nullptr) {
        bfloat16* gathered = reinterpret_cast<bfloat16*>(room + rows.count * stride_);
        differences.gather(problem_.crow + rows.first + rows.begin, problem_.col, problem_.values,
                           rows.first, change_, stride_, rows.count, gathered);
        mixed = gathered;
      }
      differences.multiply(problem_.packed_pairs, problem_.dim, stride_, rows.count, mixed, room);
    }
  }

  // z = g - secant (g - other), and what the next evaluation mixes: c z, or the change.
  void extrapolate(const accum_t* g, const accum_t* other, accum_t secant, const accum_t* evaluated,
                   const Rows& rows, bool exact) {
    const int64_t at = rows.begin * stride_;
    const int64_t size = rows.count * stride_;
    const accum_t* scale = scaled_ ? scale_ + at : nullptr;
    if (exact) {
      cell_tiles<accum_t>().extrapolate(g + at, other + at, secant, size, scale, z_ + at,
                                        scaled_ ? scaled_z_ + at : nullptr);
    } else if constexpr (std::is_same_v<accum_t, float>) {
      cell_differences()->extrapolate(g + at, other + at, secant, size, scale, evaluated + at,
                                      z_ + at, change_ + at);
    }
  }

  // In the order of the tiles, whoever computed them; NaN stays NaN.
  void add_sums(const double* sums, int64_t tiles, double* total) const {
    const int64_t count = problem_.accelerate ? kCellSums : kChangeSquare;
    std::fill_n(total, count, 0.0);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int64_t i = 0; i < count; ++i) {
        const double sum = sums[tile * kCellSums + i];
        if (i >= kChangeSquare || problem_.norm == NormKind::kTwo) {
          total[i] += sum;
        } else if (sum > total[i] || sum != sum) {
          total[i] = sum;
        }
      }
    }
  }

  const Problem& problem_;
  const int64_t stride_;
  const bool scaled_;
  const bool approximate_;  // whether evaluations may be
  bool zero_ = false;       // whether c z is, and thus its product
  CellBuffer<accum_t> memory_;
  CellBuffer<bfloat16> change_memory_;
  CellBuffer<double> sums_;
  accum_t* z_ = nullptr;
  accum_t* next_ = nullptr;  // g = z + damping (f - z)
  accum_t* best_ = nullptr;
  accum_t* bias_ = nullptr;
  accum_t* last_ = nullptr;      // the next_ of the iterate before
  accum_t* residual_ = nullptr;  // of the iterate before
  accum_t* scale_ = nullptr;
  accum_t* scaled_z_ = nullptr;
  accum_t* scaled_next_ = nullptr;
  accum_t* product_ = nullptr;  // S (c z) V^T + b
  bfloat16* change_ = nullptr;  // c times the change of z
};

}  // namespace deq
