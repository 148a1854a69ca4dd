// The iteration where each row is a sample: a tile of rows stays in the cache until all have
// stopped.
#pragma once

#include <algorithm>
#include <iterator>
#include <utility>

#include "cpu/cells/problem.h"

namespace deq {

template <typename state_t>
class CellRowTile {
 public:
  using accum_t = accumulate_t<state_t>;
  using Problem = CellProblem<state_t>;

  CellRowTile(const Problem& problem, int64_t capacity)
      : problem_(problem), stride_(problem.stride), scaled_(problem.scale.values != nullptr) {
    accum_t** const parts[] = {&z_,     &next_,  &best_,      &bias_,  &combined_, &gap_,
                               &drift_, &moved_, &earlier_z_, &scale_, &scaled_z_, &scaled_next_};
    const int64_t size = capacity * stride_;
    accum_t* buffer = memory_.resize(static_cast<int64_t>(std::size(parts)) * size);
    for (accum_t** rows : parts) {
      *rows = buffer;
      buffer += size;
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
      finish.product = next_;
      finish.base = bias_;
      if (problem_.accelerate) {
        finish.gap = gap_;
        finish.combined = combined_;
        finish.drift = drift_;
        finish.units = units_;
        finish.fresh = fresh_;
        for (int64_t row = 0; row < rows; ++row) {
          fresh_[row] = last_iterate_[row].known == 0;
          units_[row] = last_iterate_[row].template unit<accum_t>();
        }
      } else {
        finish.next = next_;
        finish.scale = scaled_ ? scale_ : nullptr;
        finish.scaled_next = scaled_ ? scaled_next_ : nullptr;
      }
      finish.each_row = true;
      finish.sums = sums_;
      cell_tiles<accum_t>().multiply(problem_.packed, problem_.dim, stride_, rows,
                                     scaled_ ? scaled_z_ : z_, next_, {});
      problem_.describe(rows, &finish);
      cell_tiles<accum_t>().finish(finish);
      rows = keep_running(rows);
      if (!problem_.accelerate) {
        std::swap(z_, next_);
        std::swap(scaled_z_, scaled_next_);
      }
    }
  }

 private:
  void load(int64_t sample, int64_t row) {
    const int64_t at = row * stride_;
    samples_[row] = sample;
    problem_.load_rows({problem_.z, problem_.dim}, sample, 1, z_ + at);
    problem_.load_rows(problem_.bias, sample, 1, bias_ + at);
    std::copy_n(z_ + at, stride_, best_ + at);
    last_iterate_[row] = Crop();
    if (scaled_) {
      problem_.load_rows(problem_.scale, sample, 1, scale_ + at);
      cell_tiles<accum_t>().scale(z_ + at, scale_ + at, stride_, scaled_z_ + at);
    }
  }

  // Rows that have stopped are stored, the others close ranks. Returns how many go on.
  int64_t keep_running(int64_t rows) {
    int64_t kept = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const CellDecision decision =
          problem_.decide(samples_[row], sums_ + kCellSums * row, last_iterate_ + row);
      if (decision.improved) {
        std::copy_n(z_ + row * stride_, stride_, best_ + row * stride_);
      }
      if (decision.action == CellAction::kStop) {
        const accum_t* result = problem_.fixed_steps ? next_ : best_;
        problem_.store_rows(result + row * stride_, samples_[row], 1);
        continue;
      }
      if (problem_.accelerate) {
        advance(row, kept, decision);
      }
      if (kept < row) {
        samples_[kept] = samples_[row];
        last_iterate_[kept] = last_iterate_[row];
        move(best_, row, kept);
        move(bias_, row, kept);
        if (scaled_) {
          move(scale_, row, kept);
        }
        if (!problem_.accelerate) {
          move(next_, row, kept);
          move(scaled_next_, row, kept);
        }
      }
      ++kept;
    }
    return kept;
  }

  // The next iterate of `row`, to be row `to`, with what it looks back on.
  void advance(int64_t row, int64_t to, const CellDecision& decision) {
    const int64_t at = row * stride_;
    const int64_t to_at = to * stride_;
    accum_t* z = z_ + to_at;
    const accum_t* c = scaled_ ? scale_ + at : nullptr;
    accum_t* scaled = scaled_ ? scaled_z_ + to_at : nullptr;
    if (decision.action == CellAction::kGoBack) {
      std::copy_n(earlier_z_ + at, stride_, z);
      if (scaled_) {
        cell_tiles<accum_t>().scale(z, c, stride_, scaled);
      }
      return;
    }
    std::copy_n(z_ + at, stride_, earlier_z_ + to_at);
    CellStep<accum_t> step = problem_.template step<accum_t>(decision.weights, stride_);
    step.z = earlier_z_ + to_at;
    step.combined = combined_ + at;
    step.gap = gap_ + at;
    step.drift = drift_ + at;
    step.moved = moved_ + at;
    step.next_z = z;
    step.next_combined = combined_ + to_at;
    step.next_drift = drift_ + to_at;
    step.next_moved = moved_ + to_at;
    step.scale = c;
    cell_tiles<accum_t>().advance(step, scaled);
  }

  void move(accum_t* rows, int64_t row, int64_t to) const {
    std::copy_n(rows + row * stride_, stride_, rows + to * stride_);
  }

  const Problem& problem_;
  const int64_t stride_;
  const bool scaled_;
  CellBuffer<accum_t> memory_;
  accum_t* z_ = nullptr;
  accum_t* next_ = nullptr;
  accum_t* best_ = nullptr;
  accum_t* bias_ = nullptr;
  accum_t* combined_ = nullptr;  // o, the combined residual of the step before
  accum_t* gap_ = nullptr;       // o less that of this iterate
  accum_t* drift_ = nullptr;     // the o before, less o
  accum_t* moved_ = nullptr;     // z less the iterate before
  accum_t* earlier_z_ = nullptr;
  accum_t* scale_ = nullptr;
  accum_t* scaled_z_ = nullptr;
  accum_t* scaled_next_ = nullptr;
  int64_t samples_[kCellRows];
  Crop last_iterate_[kCellRows];
  accum_t units_[kCellRows];
  bool fresh_[kCellRows];
  double sums_[kCellSums * kCellRows];
};

}  // namespace deq
