// The iteration of a sample that is a run of rows, a graph: by one thread, or by all of them, which
// share the rows of each step.
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/cells_problem.h"

namespace deq {

template <typename state_t>
class CellGroup {
 public:
  using accum_t = accumulate_t<state_t>;
  using Problem = CellProblem<state_t>;

  explicit CellGroup(const Problem& problem)
      : problem_(problem), stride_(problem.stride), scaled_(problem.scale.values != nullptr) {}

  // Iterates the rows [first, first + rows) of a sample that runs. for_each_tile(count, body) calls
  // body(tile, in) for every tile, where `in` has room for kCellRows rows.
  template <typename ForEachTile>
  void solve(int64_t sample, int64_t first, int64_t rows, const ForEachTile& for_each_tile) {
    load(first, rows);
    const int64_t tiles = (rows + kCellRows - 1) / kCellRows;
    double* sums = sums_.resize(kCellSums * tiles);
    Secant last;
    while (true) {
      const accum_t unit = last.unit<accum_t>();
      for_each_tile(tiles, [&](int64_t tile, accum_t* in) {
        const int64_t begin = tile * kCellRows;
        step(first, begin, std::min(kCellRows, rows - begin), unit, in, sums + kCellSums * tile);
      });
      double total[kCellSums];
      add_sums(sums, tiles, total);
      const CellDecision decision = problem_.decide(sample, total, &last);
      if (decision.improved) {
        std::swap(best_, z_);
      }
      if (decision.action == CellAction::kStop) {
        problem_.store_rows(problem_.fixed_steps ? next_ : best_, first, rows);
        return;
      }
      // What z_ points to is now either the old z or the old best, and not needed any more.
      if (!problem_.accelerate) {
        std::swap(z_, next_);
        std::swap(scaled_z_, scaled_next_);
        continue;
      }
      const bool back = decision.action == CellAction::kGoBack;
      const accum_t* g = back ? last_ : next_;
      const accum_t* other = decision.secant == 0.0 ? g : last_;
      for_each_tile(tiles, [&](int64_t tile, accum_t*) {
        const int64_t begin = tile * kCellRows;
        extrapolate(g, other, static_cast<accum_t>(decision.secant), begin,
                    std::min(kCellRows, rows - begin));
      });
      if (!back) {
        std::swap(last_, next_);
      }
    }
  }

 private:
  void load(int64_t first, int64_t rows) {
    const int64_t size = rows * stride_;
    accum_t* buffer = memory_.resize(kCellMostBuffers * size);
    const auto take = [&](accum_t*& part) {
      part = buffer;
      buffer += size;
    };
    take(z_), take(next_), take(best_), take(bias_);
    problem_.load_rows({problem_.z, problem_.dim}, first, rows, z_);
    problem_.load_rows(problem_.bias, first, rows, bias_);
    std::copy_n(z_, size, best_);
    if (problem_.accelerate) {
      take(last_), take(residual_);
      std::fill_n(residual_, size, accum_t(0));
    }
    if (scaled_) {
      take(scale_), take(scaled_z_), take(scaled_next_);
      problem_.load_rows(problem_.scale, first, rows, scale_);
      cell_tiles<accum_t>().scale(z_, scale_, size, scaled_z_);
    }
  }

  void step(int64_t first, int64_t begin, int64_t rows, const accum_t& unit, accum_t* in,
            double* sums) {
    const int64_t at = begin * stride_;
    const accum_t* mixed = scaled_ ? scaled_z_ : z_;
    if (problem_.crow == nullptr) {
      mixed += at;
    } else {
      cell_tiles<accum_t>().gather(problem_.crow + first + begin, problem_.col, problem_.values,
                                   first, mixed, stride_, rows, in);
      mixed = in;
    }
    CellFinish<accum_t> finish = {};
    finish.z = z_ + at;
    finish.next = next_ + at;
    if (problem_.accelerate) {
      finish.residual = residual_ + at;
      finish.units = &unit;
    } else if (scaled_) {
      finish.scale = scale_ + at;
      finish.scaled_next = scaled_next_ + at;
    }
    finish.sums = sums;
    problem_.update(mixed, bias_ + at, rows, finish);
  }

  void extrapolate(const accum_t* g, const accum_t* other, accum_t secant, int64_t begin,
                   int64_t rows) {
    const int64_t at = begin * stride_;
    cell_tiles<accum_t>().extrapolate(g + at, other + at, secant, rows * stride_,
                                      scaled_ ? scale_ + at : nullptr, z_ + at,
                                      scaled_ ? scaled_z_ + at : nullptr);
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
  CellBuffer<accum_t> memory_;
  CellBuffer<double> sums_;
  accum_t* z_ = nullptr;
  accum_t* next_ = nullptr;
  accum_t* best_ = nullptr;
  accum_t* bias_ = nullptr;
  accum_t* last_ = nullptr;      // the next_ of the iterate before
  accum_t* residual_ = nullptr;  // of the iterate before
  accum_t* scale_ = nullptr;
  accum_t* scaled_z_ = nullptr;
  accum_t* scaled_next_ = nullptr;
};

}  // namespace deq
