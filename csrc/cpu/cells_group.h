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
    double* norms = norms_.resize(2 * tiles);
    while (true) {
      for_each_tile(tiles, [&](int64_t tile, accum_t* in) {
        const int64_t begin = tile * kCellRows;
        step(first, begin, std::min(kCellRows, rows - begin), in, norms + 2 * tile);
      });
      double total[2];
      add_norms(norms, tiles, total);
      const auto decision = problem_.decide(sample, total);
      if (decision.improved) {
        std::swap(best_, z_);
      }
      if (!decision.advance) {
        problem_.store_rows(problem_.fixed_steps ? next_ : best_, first, rows);
        return;
      }
      // What z_ points to is now either the old z or the old best, and not needed any more.
      std::swap(z_, next_);
      std::swap(scaled_z_, scaled_next_);
    }
  }

 private:
  void load(int64_t first, int64_t rows) {
    const int64_t size = rows * stride_;
    accum_t* buffer = memory_.resize((scaled_ ? 7 : 4) * size);
    for (accum_t** part : {&z_, &next_, &best_, &bias_}) {
      *part = buffer;
      buffer += size;
    }
    problem_.load_rows({problem_.z, problem_.dim}, first, rows, z_);
    problem_.load_rows(problem_.bias, first, rows, bias_);
    std::copy_n(z_, size, best_);
    if (scaled_) {
      for (accum_t** part : {&scale_, &scaled_z_, &scaled_next_}) {
        *part = buffer;
        buffer += size;
      }
      problem_.load_rows(problem_.scale, first, rows, scale_);
      cell_tiles<accum_t>().scale(z_, scale_, size, scaled_z_);
    }
  }

  void step(int64_t first, int64_t begin, int64_t rows, accum_t* in, double* norms) {
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
    finish.scale = scaled_ ? scale_ + at : nullptr;
    finish.scaled_next = scaled_ ? scaled_next_ + at : nullptr;
    finish.norms = norms;
    problem_.update(mixed, bias_ + at, rows, finish);
  }

  // In the order of the tiles, whoever computed them; NaN stays NaN.
  void add_norms(const double* norms, int64_t tiles, double* total) const {
    total[0] = total[1] = 0.0;
    for (int64_t i = 0; i < 2 * tiles; ++i) {
      double& sum = total[i % 2];
      if (problem_.norm == NormKind::kTwo) {
        sum += norms[i];
      } else if (norms[i] > sum || norms[i] != norms[i]) {
        sum = norms[i];
      }
    }
  }

  const Problem& problem_;
  const int64_t stride_;
  const bool scaled_;
  CellBuffer<accum_t> memory_;
  CellBuffer<double> norms_;
  accum_t* z_ = nullptr;
  accum_t* next_ = nullptr;
  accum_t* best_ = nullptr;
  accum_t* bias_ = nullptr;
  accum_t* scale_ = nullptr;
  accum_t* scaled_z_ = nullptr;
  accum_t* scaled_next_ = nullptr;
};

}  // namespace deq
