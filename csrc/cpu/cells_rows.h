// The iteration where each row is a sample: a tile of rows stays in the cache until all have
// stopped.
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/cells_problem.h"

namespace deq {

template <typename state_t>
class CellRowTile {
 public:
  using accum_t = accumulate_t<state_t>;
  using Problem = CellProblem<state_t>;

  CellRowTile(const Problem& problem, int64_t capacity)
      : problem_(problem), stride_(problem.stride), scaled_(problem.scale.values != nullptr) {
    const int64_t size = capacity * stride_;
    // z, the next z, the best z and b; with a scale c, c z and the next c z.
    accum_t* buffer = memory_.resize((scaled_ ? 7 : 4) * size);
    for (accum_t** rows : {&z_, &next_, &best_, &bias_}) {
      *rows = buffer;
      buffer += size;
    }
    if (scaled_) {
      for (accum_t** rows : {&scale_, &scaled_z_, &scaled_next_}) {
        *rows = buffer;
        buffer += size;
      }
    }
  }

  // Iterates the rows [first, first + count) that run; count is at most the capacity.
  void solve(int64_t first, int64_t count) {
    int64_t rows = 0;
    for (int64_t sample = first; sample < first + count; ++sample) {
      if (is_running(problem_.counters, sample)) {
        load(sample, rows++);
      }
    }
    while (rows > 0) {
      CellFinish<accum_t> finish = {};
      finish.z = z_;
      finish.next = next_;
      finish.scale = scaled_ ? scale_ : nullptr;
      finish.scaled_next = scaled_ ? scaled_next_ : nullptr;
      finish.each_row = true;
      finish.norms = norms_;
      problem_.update(scaled_ ? scaled_z_ : z_, bias_, rows, finish);
      rows = keep_running(rows);
      std::swap(z_, next_);
      std::swap(scaled_z_, scaled_next_);
    }
  }

 private:
  void load(int64_t sample, int64_t row) {
    const int64_t at = row * stride_;
    samples_[row] = sample;
    problem_.load_rows({problem_.z, problem_.dim}, sample, 1, z_ + at);
    problem_.load_rows(problem_.bias, sample, 1, bias_ + at);
    std::copy_n(z_ + at, stride_, best_ + at);
    if (scaled_) {
      problem_.load_rows(problem_.scale, sample, 1, scale_ + at);
      cell_tiles<accum_t>().scale(z_ + at, scale_ + at, stride_, scaled_z_ + at);
    }
  }

  // Rows that have stopped are stored, the others close ranks. Returns how many go on.
  int64_t keep_running(int64_t rows) {
    int64_t kept = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const auto decision = problem_.decide(samples_[row], norms_ + 2 * row);
      if (decision.improved) {
        std::copy_n(z_ + row * stride_, stride_, best_ + row * stride_);
      }
      if (!decision.advance) {
        const accum_t* result = problem_.fixed_steps ? next_ : best_;
        problem_.store_rows(result + row * stride_, samples_[row], 1);
        continue;
      }
      if (kept < row) {
        samples_[kept] = samples_[row];
        for (accum_t* moved : {next_, best_, bias_, scale_, scaled_next_}) {
          if (moved != nullptr) {
            std::copy_n(moved + row * stride_, stride_, moved + kept * stride_);
          }
        }
      }
      ++kept;
    }
    return kept;
  }

  const Problem& problem_;
  const int64_t stride_;
  const bool scaled_;
  CellBuffer<accum_t> memory_;
  accum_t* z_ = nullptr;
  accum_t* next_ = nullptr;
  accum_t* best_ = nullptr;
  accum_t* bias_ = nullptr;
  accum_t* scale_ = nullptr;
  accum_t* scaled_z_ = nullptr;
  accum_t* scaled_next_ = nullptr;
  int64_t samples_[kCellRows];
  double norms_[2 * kCellRows];
};

}  // namespace deq
