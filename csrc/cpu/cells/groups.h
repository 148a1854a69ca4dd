// The iteration of a sample that is a run of rows, a graph: by one thread, or by all of them, which
// share the rows of each step.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <type_traits>
#include <utility>

#include "cpu/cells/problem.h"

namespace deq {

// Steps look back on differences of small_t. Where that is shorter than what they are computed in,
// most evaluations follow from the one before by a product of low precision.
template <typename state_t, typename small_t = accumulate_t<state_t>>
class CellGroup {
 public:
  using accum_t = accumulate_t<state_t>;
  using Problem = CellProblem<state_t>;

  explicit CellGroup(const Problem& problem)
      : problem_(problem), stride_(problem.stride), scaled_(problem.scale.values != nullptr) {}

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
    for_each_tile(tiles, [&](int64_t tile, accum_t*) { sums[tile] = load(rows_of(tile)); });
    const auto is_zero = [](double nonzero) { return nonzero == 0.0; };
    zero_ = problem_.finite && std::all_of(sums, sums + tiles, is_zero);
    Crop last;
    CellPrecision precision(kApproximate);
    while (true) {
      const accum_t unit = last.unit<accum_t>();
      const bool fresh = last.known == 0;
      for_each_tile(tiles, [&](int64_t tile, accum_t* room) {
        step(rows_of(tile), precision.exact(), unit, fresh, room, sums + kCellSums * tile);
      });
      zero_ = false;
      double total[kCellSums];
      add_sums(sums, tiles, total);
      const CellDecision decision = problem_.decide(sample, total, &last, &precision);
      if (decision.improved) {
        best_ = z_;
      }
      if (decision.action == CellAction::kStop) {
        const accum_t* result = problem_.fixed_steps ? next_ : best_;
        for_each_tile(tiles, [&](int64_t tile, accum_t*) { store(result, rows_of(tile)); });
        return;
      }
      if (!problem_.accelerate) {
        z_ = next_;
        next_ = spare();
        std::swap(scaled_z_, scaled_next_);
        continue;
      }
      if (decision.action == CellAction::kAdvance) {
        next_ = in_place(decision.weights) ? z_ : spare();
        for_each_tile(tiles, [&](int64_t tile, accum_t*) {
          advance(decision.weights, rows_of(tile), precision.exact());
        });
        earlier_z_ = std::exchange(z_, next_);
      } else {
        const bool subtract = decision.action == CellAction::kGoBack && earlier_z_ == z_;
        z_ = decision.action == CellAction::kGoBack ? earlier_z_ : z_;
        for_each_tile(tiles, [&](int64_t tile, accum_t*) { retreat(rows_of(tile), subtract); });
      }
    }
  }

 private:
  static constexpr bool kApproximate = !std::is_same_v<small_t, accum_t>;

  static accum_t widen(accum_t value) { return value; }
  static accum_t widen(bfloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
  }

  // `count` rows of a sample, from its row `begin` on; the sample's first row is `first`.
  struct Rows {
    int64_t first;
    int64_t begin;
    int64_t count;
  };

  void allocate(int64_t rows) {
    const int64_t size = rows * stride_;
    const int64_t parts = 4 + problem_.accelerate + 3 * scaled_ + kApproximate;
    accum_t* buffer = memory_.resize(parts * size);
    const auto take = [&](accum_t*& part) {
      part = buffer;
      buffer += size;
    };
    for (accum_t*& iterate : iterates_) {
      take(iterate);
    }
    take(bias_);
    z_ = best_ = iterates_[0];
    next_ = iterates_[1];
    if (scaled_) {
      take(scale_), take(scaled_z_), take(scaled_next_);
    }
    if (kApproximate) {
      take(product_);
    }
    if (problem_.accelerate) {
      take(combined_);
      const bool apart = kApproximate && scaled_;
      small_t* small_buffer = small_memory_.resize((3 + apart) * size);
      gap_ = small_buffer;
      drift_ = gap_ + size;
      moved_ = drift_ + size;
      change_ = apart ? moved_ + size : moved_;
    }
  }

  // Whether the next iterate may take the place of this one, which is then found again by
  // subtraction: what that rounds away is little beside the residual where the step is not long.
  bool in_place(const CellWeights& weights) const {
    constexpr double kLong = 16.0;
    return kApproximate && z_ != best_ && std::fabs(1.0 - weights.share) < kLong &&
           std::fabs(weights.momentum) < kLong;
  }

  // Memory for an iterate beside this one and the best.
  accum_t* spare() const {
    const auto is_free = [&](const accum_t* iterate) { return iterate != z_ && iterate != best_; };
    return *std::find_if(std::begin(iterates_), std::end(iterates_), is_free);
  }

  // Returns 0 where c z is zero in all of the rows.
  double load(const Rows& rows) {
    const int64_t at = rows.begin * stride_;
    const int64_t size = rows.count * stride_;
    const int64_t first = rows.first + rows.begin;
    problem_.load_rows({problem_.z, problem_.dim}, first, rows.count, z_ + at);
    problem_.load_rows(problem_.bias, first, rows.count, bias_ + at);
    if (scaled_) {
      problem_.load_rows(problem_.scale, first, rows.count, scale_ + at);
      scale(rows);
    }
    const auto is_zero = [](accum_t x) { return x == accum_t(0); };
    const accum_t* mixed = (scaled_ ? scaled_z_ : z_) + at;
    return std::all_of(mixed, mixed + size, is_zero) ? 0.0 : 1.0;
  }

  void scale(const Rows& rows) {
    if (scaled_) {
      const int64_t at = rows.begin * stride_;
      cell_tiles<accum_t>().scale(z_ + at, scale_ + at, rows.count * stride_, scaled_z_ + at);
    }
  }

  void store(const accum_t* result, const Rows& rows) {
    problem_.store_rows(result + rows.begin * stride_, rows.first + rows.begin, rows.count);
  }

  // One evaluation, by its product or by that of the change from the one before.
  void step(const Rows& rows, bool exact, const accum_t& unit, const bool& fresh, accum_t* room,
            double* sums) {
    const int64_t at = rows.begin * stride_;
    CellFinish<accum_t, small_t> finish = {};
    finish.z = z_ + at;
    finish.product = room;
    finish.base = (exact ? bias_ : product_) + at;
    finish.sum = kApproximate ? product_ + at : nullptr;
    if (zero_) {
      std::fill_n(room, rows.count * stride_, accum_t(0));
    } else if (exact) {
      multiply(rows, room, read_next(rows, finish.base));
    } else {
      multiply_change(rows, room, read_next(rows, finish.base));
    }
    if (problem_.accelerate) {
      finish.gap = gap_ + at;
      finish.combined = combined_ + at;
      finish.drift = drift_ + at;
      finish.units = &unit;
      finish.fresh = &fresh;
    } else {
      finish.next = next_ + at;
      finish.scale = scaled_ ? scale_ + at : nullptr;
      finish.scaled_next = scaled_ ? scaled_next_ + at : nullptr;
    }
    finish.sums = sums;
    problem_.describe(rows.count, &finish);
    if constexpr (kApproximate) {
      cell_differences()->finish(finish);
    } else {
      cell_tiles<accum_t>().finish(finish);
    }
  }

  // What the end of an evaluation reads.
  CellAhead read_next(const Rows& rows, const accum_t* base) const {
    const int64_t at = rows.begin * stride_;
    const int64_t bytes = stride_ * static_cast<int64_t>(sizeof(accum_t));
    if (!problem_.accelerate) {
      return {{base, z_ + at}, {bytes, bytes}};
    }
    const int64_t small_bytes = stride_ * static_cast<int64_t>(sizeof(small_t));
    return {{base, z_ + at, combined_ + at, drift_ + at}, {bytes, bytes, bytes, small_bytes}};
  }

  // S (c z) V^T at the beginning of the room.
  void multiply(const Rows& rows, accum_t* room, const CellAhead& ahead) {
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
    tiles.multiply(problem_.packed, problem_.dim, stride_, rows.count, mixed, room, ahead);
  }

  // S change V^T there.
  void multiply_change(const Rows& rows, accum_t* room, const CellAhead& ahead) {
    if constexpr (kApproximate) {
      const CellDifferences& differences = *cell_differences();
      const bfloat16* mixed = change_ + rows.begin * stride_;
      if (problem_.crow != nullptr) {
        bfloat16* gathered = reinterpret_cast<bfloat16*>(room + rows.count * stride_);
        differences.gather(problem_.crow + rows.first + rows.begin, problem_.col, problem_.values,
                           rows.first, change_, stride_, rows.count, gathered);
        mixed = gathered;
      }
      differences.multiply(problem_.packed_pairs, problem_.dim, stride_, rows.count, mixed, room,
                           ahead);
    }
  }

  // To the next iterate, and to what its evaluation mixes: c z, or the change.
  void advance(const CellWeights& weights, const Rows& rows, bool exact) {
    const int64_t at = rows.begin * stride_;
    CellStep<accum_t, small_t> step =
        problem_.template step<small_t>(weights, rows.count * stride_);
    step.z = z_ + at;
    step.combined = step.next_combined = combined_ + at;
    step.gap = gap_ + at;
    step.drift = step.next_drift = drift_ + at;
    step.moved = step.next_moved = moved_ + at;
    step.next_z = next_ + at;
    accum_t* scaled = nullptr;
    if (scaled_) {
      step.scale = scale_ + at;
      scaled = scaled_z_ + at;
    }
    if constexpr (!kApproximate) {
      cell_tiles<accum_t>().advance(step, scaled);
    } else if (exact) {
      cell_differences()->advance(step, scaled);
    } else {
      cell_differences()->advance_change(step, scaled_ ? change_ + at : nullptr);
    }
  }

  // What is left to do on the way to the iterate before, or to this one again.
  void retreat(const Rows& rows, bool subtract) {
    const int64_t at = rows.begin * stride_;
    const int64_t end = at + (subtract ? rows.count * stride_ : 0);
    for (int64_t i = at; i < end; ++i) {
      z_[i] -= widen(moved_[i]);
    }
    scale(rows);
  }

  // In the order of the tiles, whoever computed them; NaN stays NaN.
  void add_sums(const double* sums, int64_t tiles, double* total) const {
    std::fill_n(total, kCellSums, 0.0);
    const auto largest = [](double sum, double* of) {
      if (sum > *of || sum != sum) {
        *of = sum;
      }
    };
    for (int64_t tile = 0; tile < tiles; ++tile, sums += kCellSums) {
      for (int64_t i = 0; i < kSquareU; ++i) {
        if (problem_.norm == NormKind::kTwo) {
          total[i] += sums[i];
        } else {
          largest(sums[i], total + i);
        }
      }
      for (int64_t i = kSquareU; problem_.accelerate && i < kUnsettledNorm; ++i) {
        total[i] += sums[i];
      }
      if (problem_.norm == NormKind::kRows) {
        largest(sums[kUnsettledNorm], total + kUnsettledNorm);
      }
    }
  }

  const Problem& problem_;
  const int64_t stride_;
  const bool scaled_;
  bool zero_ = false;  // whether c z is, and thus its product
  CellBuffer<accum_t> memory_;
  CellBuffer<small_t> small_memory_;
  CellBuffer<double> sums_;
  accum_t* iterates_[3] = {};
  accum_t* z_ = nullptr;  // one of them, as are the next three
  accum_t* next_ = nullptr;
  accum_t* best_ = nullptr;
  accum_t* earlier_z_ = nullptr;  // z_ itself where that took its place
  accum_t* bias_ = nullptr;
  accum_t* scale_ = nullptr;
  accum_t* scaled_z_ = nullptr;
  accum_t* scaled_next_ = nullptr;
  accum_t* product_ = nullptr;   // S (c z) V^T + b
  accum_t* combined_ = nullptr;  // o, the combined residual of the step before
  small_t* gap_ = nullptr;       // o less that of this iterate
  small_t* drift_ = nullptr;     // the o before, less o
  small_t* moved_ = nullptr;     // z less the iterate before
  small_t* change_ = nullptr;    // c times moved_
};

}  // namespace deq
