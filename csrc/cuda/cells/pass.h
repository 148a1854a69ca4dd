// One evaluation of a structured cell on a few rows by one block:
//     r = f(z) - z,    f(z) = phi(S (c z) V^T + b),
// what is summed over a sample of each row (CellSum) and, where steps are not accelerated, the next
// iterate z + damping r in place of r.
//
// Every element of S (c z) is one chain of multiply-adds over the entries of S in their order.
// Every element of its product with V is a chain for each kChainTerms columns of V, one chain added
// to those before, and b added at last. A row's norms are one fixed tree. So nothing of a row
// depends on how rows and columns are cut.
//
// Who the rows belong to is said by a `Pass`:
//   bool runs(row)                   false: nothing of the row is wanted
//   int64_t global(row)              its place among all rows
//   accum_t* z(row)                  [row_stride]
//   accum_t* output(row)             receives r, or the next iterate
//   where steps are accelerated:
//   accum_t* combined(row)           o, the combined residual of the step before
//   accum_t* last_combined(row)      o', that of the one before it
//   accum_t unit(row)                of the sums that compare them with r
//   mix(row, k, sums)                adds (S (c z))[row, k .. k + kCellItem) to sums
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/activation.h"
#include "algebra/cell_verdict.h"
#include "algebra/multiply_add.h"
#include "algebra/types.h"
#include "cuda/cells/plan.h"
#include "cuda/tile.h"

namespace deq {

template <typename state_t>
struct CellArguments {
  using accum_t = accumulate_t<state_t>;

  const state_t* weight;  // V, [dim, dim]
  int64_t weight_row_stride;
  int64_t weight_k_stride;
  const int64_t* crow;  // [rows + 1]; null: no S
  const int64_t* col;   // [entries]
  const state_t* values;
  const int64_t* sample_ptr;  // [samples + 1]; null: each row is a sample
  const state_t* bias;        // b, rows bias_stride apart
  int64_t bias_stride;
  const state_t* scale;  // c, rows scale_stride apart; null: ones
  int64_t scale_stride;
  state_t* z;         // [rows, dim]
  double* record;     // [samples, kNormColumns + max_steps]
  int64_t* counters;  // [samples, kCounterColumns]
  int64_t* active;    // [1]
  int64_t rows;
  int64_t dim;
  int64_t samples;
  int64_t entries;
  Activation activation;
  NormKind norm;
  double damping;
  bool fixed_steps;
  bool accelerate;
  Limits limits;

  // Memory of this launch alone for rows and partial sums that find no room on chip, or null.
  accum_t* row_scratch;  // [slots, rows, row_stride]
  double* sum_scratch;   // [2, kCellSums] for every tile of a sample, each sample's together
};

// c z of one row from column k on.
template <typename state_t, typename accum_t>
DEQ_DEVICE Pack<accum_t, kCellItem> scaled_items(const CellArguments<state_t>& a, const accum_t* z,
                                                 int64_t row, int64_t k) {
  auto items = load_pack<Pack<accum_t, kCellItem>>(z + k);
  if (a.scale != nullptr) {
    const state_t* const c = a.scale + row * a.scale_stride + k;
    DEQ_UNROLL
    for (int v = 0; v < kCellItem; ++v) {
      if (k + v < a.dim) {
        items.values[v] *= widen(c[v]);
      }
    }
  }
  return items;
}

// Copies V[column .. column + columns, k .. k + terms) to shared memory, zero from `dim` on.
template <typename state_t, typename Block>
DEQ_DEVICE void stage_weight(const Block& block, const CellArguments<state_t>& a, int64_t column,
                             int columns, int64_t k, int terms, int stride, state_t* to) {
  using pack_t = Pack<state_t, kCellItem>;
  const state_t* const from = a.weight + column * a.weight_row_stride + k * a.weight_k_stride;
  const bool dense = a.weight_k_stride == 1;
  if (dense && a.weight_row_stride % kCellItem == 0 && a.dim % kCellItem == 0 &&
      is_aligned<pack_t>(from)) {
    const int vectors = terms / kCellItem;
    for (int i = block.thread(); i < columns * vectors; i += kGpuThreads) {
      const int c = i / vectors;
      const int t = i % vectors * kCellItem;
      store_pack(load_pack<pack_t>(from + c * a.weight_row_stride + t), to + c * stride + t);
    }
    return;
  }
  // Neighbouring threads read neighbouring elements, whichever way V lies in memory.
  for (int i = block.thread(); i < columns * terms; i += kGpuThreads) {
    const int c = dense ? i / terms : i % columns;
    const int t = dense ? i % terms : i / columns;
    to[c * stride + t] =
        k + t < a.dim ? from[c * a.weight_row_stride + t * a.weight_k_stride] : state_t{};
  }
}

// S (c z) of the columns [k, k + terms) of a pass, zero from `dim` on.
template <typename state_t, typename accum_t, typename Block, typename Pass>
DEQ_DEVICE void mix_rows(const Block& block, const CellArguments<state_t>& a, const Pass& pass,
                         int rows, int64_t k, int terms, int stride, accum_t* to) {
  const int vectors = terms / kCellItem;
  for (int i = block.thread(); i < rows * vectors; i += kGpuThreads) {
    const int row = i / vectors;
    const int t = i % vectors * kCellItem;
    Pack<accum_t, kCellItem> sums = {};
    pass.mix(row, k + t, sums);
    DEQ_UNROLL
    for (int v = 0; v < kCellItem; ++v) {
      sums.values[v] = k + t + v < a.dim ? sums.values[v] : accum_t(0);
    }
    store_pack(sums, to + row * stride + t);
  }
}

// The weight of a block that keeps all of it.
template <typename state_t, typename Block>
DEQ_DEVICE void stage_resident(const Block& block, const CellArguments<state_t>& a,
                               const CellPlan& plan) {
  if (plan.resident) {
    stage_weight(block, a, 0, static_cast<int>(a.dim), 0, plan.tile_k, plan.weight_stride,
                 reinterpret_cast<state_t*>(block.shared() + plan.shared.weight));
  }
}

// S (c z) V^T of the first `rows` rows of a pass, in place of the output. Each thread computes
// kCellItem neighbouring rows of columns that are column_groups apart.
template <typename state_t, typename Block, typename Pass>
DEQ_DEVICE void multiply_rows(const Block& block, const CellArguments<state_t>& a,
                              const CellPlan& plan, const Pass& pass, int rows) {
  using accum_t = accumulate_t<state_t>;
  state_t* const weight = reinterpret_cast<state_t*>(block.shared() + plan.shared.weight);
  accum_t* const input = reinterpret_cast<accum_t*>(block.shared() + plan.shared.input);
  const int groups = plan.column_groups;
  const int first_row = block.thread() / groups * kCellItem;
  const int group = block.thread() % groups;
  bool wanted = false;
  int input_at[kCellItem];
  DEQ_UNROLL
  for (int i = 0; i < kCellItem; ++i) {
    const int row = first_row + i;
    wanted = wanted || (row < rows && pass.runs(row));
    input_at[i] = (row < rows ? row : rows - 1) * plan.tile_k;
  }
  const int dim = static_cast<int>(a.dim);
  // No chain ends within so many terms.
  const int most = plan.resident ? kChainTerms : plan.tile_k;
  for (int begin = 0; begin < dim; begin += groups * kCellItem) {
    const int columns = dim - begin < groups * kCellItem ? dim - begin : groups * kCellItem;
    const bool works = wanted && group < columns;
    accum_t sums[kCellItem][kCellItem] = {};
    int weight_at[kCellItem];
    DEQ_UNROLL
    for (int j = 0; j < kCellItem; ++j) {
      // Beyond the last column any will do: what becomes of it is not stored.
      const int column = group + j * groups < columns ? group + j * groups : columns - 1;
      weight_at[j] = (plan.resident ? begin + column : column) * plan.weight_stride;
    }
    for (int k = 0; k < dim; k += most) {
      const int left = (dim - k + kCellItem - 1) / kCellItem * kCellItem;
      const int terms = left < most ? left : most;
      if (!plan.resident || begin + k == 0) {
        if (begin + k > 0) {
          block.sync();  // all have read the tile before
        }
        if (!plan.resident) {
          stage_weight(block, a, begin, columns, k, terms, plan.weight_stride, weight);
        }
        mix_rows(block, a, pass, rows, k, plan.resident ? plan.tile_k : terms, plan.tile_k, input);
        block.sync();
      }
      if (!works) {
        continue;
      }
      const int first_term = plan.resident ? k : 0;
      for (int t = first_term; t < first_term + terms; t += kCellItem) {
        Pack<accum_t, kCellItem> x[kCellItem];
        DEQ_UNROLL
        for (int i = 0; i < kCellItem; ++i) {
          x[i] = load_pack<Pack<accum_t, kCellItem>>(input + input_at[i] + t);
        }
        DEQ_UNROLL
        for (int j = 0; j < kCellItem; ++j) {
          const auto w = load_pack<Pack<state_t, kCellItem>>(weight + weight_at[j] + t);
          DEQ_UNROLL
          for (int v = 0; v < kCellItem; ++v) {
            const accum_t factor = widen(w.values[v]);
            DEQ_UNROLL
            for (int i = 0; i < kCellItem; ++i) {
              sums[i][j] = multiply_add(x[i].values[v], factor, sums[i][j]);
            }
          }
        }
      }
      if ((k + terms) % kChainTerms != 0 && k + terms < dim) {
        continue;
      }
      // The chain is complete: the first is stored, others are added to those before.
      const bool first = k < kChainTerms;
      DEQ_UNROLL
      for (int i = 0; i < kCellItem; ++i) {
        if (first_row + i < rows && pass.runs(first_row + i)) {
          accum_t* const product = pass.output(first_row + i) + begin;
          // All are read before any is written, so that they are waited for together.
          accum_t before[kCellItem] = {};
          DEQ_UNROLL
          for (int j = 0; j < kCellItem; ++j) {
            if (!first && group + j * groups < columns) {
              before[j] = product[group + j * groups];
            }
          }
          DEQ_UNROLL
          for (int j = 0; j < kCellItem; ++j) {
            if (group + j * groups < columns) {
              product[group + j * groups] = before[j] + sums[i][j];
            }
          }
        }
        DEQ_UNROLL
        for (int j = 0; j < kCellItem; ++j) {
          sums[i][j] = accum_t(0);
        }
      }
    }
  }
}

// Two squared norms, or the two roots of them, of which one is taken with the other: a sum, or the
// larger one, where NaN counts as the largest.
DEQ_DEVICE double combined(NormKind norm, double a, double b) {
  if (norm == NormKind::kTwo) {
    return a + b;
  }
  return b > a || b != b ? b : a;
}

// Both values of all lanes of a warp, in one fixed tree: the first is returned by the lower half of
// the lanes, the second by the upper.
template <typename Block>
DEQ_DEVICE double combine_warp(const Block& block, NormKind norm, const double (&values)[2]) {
  constexpr int kHalf = kGpuWarp / 2;
  const bool upper = block.lane() >= kHalf;
  const double given = block.shuffle_xor(upper ? values[0] : values[1], kHalf);
  double value = combined(norm, upper ? values[1] : values[0], given);
  DEQ_UNROLL
  for (int mask = kHalf / 2; mask > 0; mask /= 2) {
    value = combined(norm, value, block.shuffle_xor(value, mask));
  }
  return value;
}

template <typename Block>
DEQ_DEVICE void put_pair(const Block& block, double value, double* pair) {
  if (block.lane() % (kGpuWarp / 2) == 0) {
    pair[block.lane() / (kGpuWarp / 2)] = value;
  }
}

// From S (c z) V^T to the output in its place, a warp per row; row_sums [rows, kCellSums] receives
// what `combined` combines, in double so that no float32 state overflows it.
template <typename state_t, typename Block, typename Pass>
DEQ_DEVICE void finish_rows(const Block& block, const CellArguments<state_t>& a, const Pass& pass,
                            int rows, double* row_sums) {
  using accum_t = accumulate_t<state_t>;
  const accum_t share = static_cast<accum_t>(a.damping);
  for (int row = block.warp(); row < rows; row += kGpuWarps) {
    if (!pass.runs(row)) {
      continue;
    }
    const accum_t* const z = pass.z(row);
    accum_t* const output = pass.output(row);
    const state_t* const bias = a.bias + pass.global(row) * a.bias_stride;
    const accum_t* const newer = a.accelerate ? pass.combined(row) : nullptr;
    const accum_t* const older = a.accelerate ? pass.last_combined(row) : nullptr;
    const accum_t unit = a.accelerate ? pass.unit(row) : accum_t(1);
    double norms[2] = {};
    double first[2] = {};   // <u, u> and <u, v>
    double second[2] = {};  // <v, v> and <u, r>
    accum_t largest[2] = {};
    for (int64_t i = block.lane(); i < a.dim; i += kGpuWarp) {
      const accum_t f = activated(a.activation, output[i] + widen(bias[i]));
      const accum_t residual = f - z[i];
      const accum_t next = share == accum_t(1) ? f : multiply_add(share, residual, z[i]);
      output[i] = a.accelerate ? residual : next;
      if (a.norm != NormKind::kMax) {
        const double wide_residual = static_cast<double>(residual);
        const double wide_f = static_cast<double>(f);
        norms[0] = multiply_add(wide_residual, wide_residual, norms[0]);
        norms[1] = multiply_add(wide_f, wide_f, norms[1]);
      } else {
        const accum_t magnitudes[2] = {std::fabs(residual), std::fabs(f)};
        DEQ_UNROLL
        for (int n = 0; n < 2; ++n) {
          const bool larger = magnitudes[n] > largest[n] || magnitudes[n] != magnitudes[n];
          largest[n] = larger ? magnitudes[n] : largest[n];
        }
      }
      if (a.accelerate) {
        const double u = static_cast<double>(unit * (newer[i] - residual));
        const double v = static_cast<double>(unit * (older[i] - newer[i]));
        first[0] = multiply_add(u, u, first[0]);
        first[1] = multiply_add(u, v, first[1]);
        second[0] = multiply_add(v, v, second[0]);
        second[1] = multiply_add(u, static_cast<double>(unit * residual), second[1]);
      }
    }
    if (a.norm == NormKind::kMax) {
      norms[0] = static_cast<double>(largest[0]);
      norms[1] = static_cast<double>(largest[1]);
    }
    double* const sums = row_sums + kCellSums * row;
    const NormKind within = a.norm == NormKind::kMax ? NormKind::kMax : NormKind::kTwo;
    put_pair(block, combine_warp(block, within, norms), sums);
    if (a.accelerate) {
      put_pair(block, combine_warp(block, NormKind::kTwo, first), sums + kSquareU);
      put_pair(block, combine_warp(block, NormKind::kTwo, second), sums + kSquareV);
    }
  }
}

// The output of the first `rows` rows of a pass, and their sums; all threads see them.
template <typename state_t, typename Block, typename Pass>
DEQ_DEVICE void evaluate_rows(const Block& block, const CellArguments<state_t>& a,
                              const CellPlan& plan, const Pass& pass, int rows) {
  multiply_rows(block, a, plan, pass, rows);
  block.sync();
  finish_rows(block, a, pass, rows,
              reinterpret_cast<double*>(block.shared() + plan.shared.row_sums));
  block.sync();
}

// Whether an evaluation leaves sum `i`, and how that is combined.
template <typename state_t>
DEQ_DEVICE bool has_sum(const CellArguments<state_t>& a, int i) {
  return i < kSquareU || (i < kUnsettledNorm ? a.accelerate : a.norm == NormKind::kRows);
}
template <typename state_t>
DEQ_DEVICE NormKind kind_of(const CellArguments<state_t>& a, int i) {
  return i < kSquareU || i >= kUnsettledNorm ? a.norm : NormKind::kTwo;
}

// Sum `i` of one row, from what `finish_rows` has left of it.
template <typename state_t>
DEQ_DEVICE double row_sum(const CellArguments<state_t>& a, const double* row_sums, int i) {
  return i < kUnsettledNorm ? row_sums[i]
                            : unsettled(row_sums[kResidualNorm], row_sums[kValueNorm],
                                        a.limits.rtol, a.limits.atol);
}

// Squared norms in place of what `combined` has combined.
template <typename state_t>
DEQ_DEVICE void square_norms(const CellArguments<state_t>& a, double* sums) {
  if (a.norm == NormKind::kMax) {
    sums[kResidualNorm] *= sums[kResidualNorm];
    sums[kValueNorm] *= sums[kValueNorm];
  }
}

// A sample's tables as they are kept on chip for a solve; its trace stays where it is.
template <typename state_t>
DEQ_DEVICE void load_tables(const CellArguments<state_t>& a, int64_t sample, double* norms,
                            int64_t* counters) {
  const double* const from = a.record + sample * (kNormColumns + a.limits.max_steps);
  for (int i = 0; i < kNormColumns; ++i) {
    norms[i] = from[i];
  }
  for (int i = 0; i < kCounterColumns; ++i) {
    counters[i] = a.counters[sample * kCounterColumns + i];
  }
}

template <typename state_t, typename Block>
DEQ_DEVICE void store_tables(const Block& block, const CellArguments<state_t>& a, int64_t sample,
                             const double* norms, const int64_t* counters) {
  double* const to = a.record + sample * (kNormColumns + a.limits.max_steps);
  for (int i = 0; i < kNormColumns; ++i) {
    to[i] = norms[i];
  }
  for (int i = 0; i < kCounterColumns; ++i) {
    a.counters[sample * kCounterColumns + i] = counters[i];
  }
  block.subtract_one(a.active);
}

// One element of a sample's trace.
template <typename state_t>
DEQ_DEVICE double* traced(const CellArguments<state_t>& a, int64_t sample, int64_t step) {
  return a.record + sample * (kNormColumns + a.limits.max_steps) + kNormColumns + step;
}

template <typename state_t, typename Block>
DEQ_DEVICE bool is_running(const Block& block, const CellArguments<state_t>& a, int64_t sample) {
  const int64_t* const counters = a.counters + sample * kCounterColumns;
  if (counters[kStatus] != kRunning) {
    return false;
  }
  block.check(counters[kSteps] >= 0 && counters[kSteps] < a.limits.max_steps,
              "a running sample must have a step of its trace left");
  return true;
}

}  // namespace deq
