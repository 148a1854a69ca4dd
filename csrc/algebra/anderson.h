// What one Anderson step of one sample decides from its sums: the same on every backend.
// Formulas: docs/algebra.md, section 4.
//
// Symbols: r the residual, y = z + beta r the damped image; t_j and delta_j the changes of r and of
// y from one evaluation to the next; gamma_j the weights of the changes; lambda the ridge. The t_j
// are stored times c, a power of two that keeps their dots in range, and so is r where it meets
// them: then everything in the system of the gammas holds a factor of c^2.
//
// The triangular systems are solved column by column, so that lanes share the part that is long and
// the number of lanes changes no bit (algebra/product_form.h).
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/direction_scale.h"
#include "algebra/lanes.h"
#include "algebra/macros.h"
#include "algebra/multiply_add.h"
#include "algebra/norms.h"
#include "algebra/termination.h"
#include "algebra/types.h"

namespace deq {

struct AndersonOptions {
  double damping;          // beta
  double regularization;   // lambda / ||r||^2
  double dependent_share;  // below it, a pivot is rounding
  ScaleRange range;
  Limits limits;
};

// The squared distance of a change from the span of newer ones, as a share of its squared length,
// at which it says nothing new: the rounding of the dots, or of the stored change itself.
template <typename history_t, typename accum_t>
constexpr double dependent_share() {
  constexpr double stored = roundoff(history_t()) * roundoff(history_t());
  constexpr double summed = roundoff(accum_t());
  return stored > summed ? stored : summed;
}

// A weight beyond this is no use to a float32 state.
constexpr double kLargestWeight = 1e30;

// Where the newest changes of one sample lie, of all that were seen since its window was empty.
struct ChangeRing {
  int64_t capacity;
  int64_t count;   // changes stored
  int64_t newest;  // slot of the newest one, where there is any
  int64_t next;    // slot of the one to come, where there is room for any

  DEQ_HOST_DEVICE ChangeRing(int64_t capacity_, int64_t seen)
      : capacity(capacity_),
        count(seen < capacity_ ? seen : capacity_),
        newest(count > 0 ? (seen - 1) % capacity_ : 0),
        next(capacity_ > 0 ? seen % capacity_ : 0) {}

  // Slot of the change that is `age` steps older than the newest.
  DEQ_HOST_DEVICE int64_t slot(int64_t age) const {
    return age <= newest ? newest - age : newest - age + capacity;
  }
};

// One sample's rank-sized table: row j holds G_j0 ... G_j,capacity-1 by slot, and then a row of
// room for the factorisation, which is by age.
struct AndersonTable {
  double* table;  // [capacity, 2 capacity]
  int64_t capacity;

  DEQ_HOST_DEVICE static int64_t table_size(int64_t capacity) { return capacity * 2 * capacity; }
  // G_ij = <t_i, t_j> of the changes as stored.
  DEQ_HOST_DEVICE double& gram(int64_t i, int64_t j) const { return table[i * 2 * capacity + j]; }
  DEQ_HOST_DEVICE double& factor(int64_t i, int64_t j) const { return gram(i, capacity + j); }

  // Takes in <t_j, t_newest> of all changes stored.
  template <typename Lanes>
  DEQ_HOST_DEVICE void set_newest(const Lanes& lanes, int64_t newest, int64_t count,
                                  const double* column) const {
    for_each_lane(lanes, 0, count, [&](int64_t j) {
      gram(j, newest) = column[j];
      gram(newest, j) = column[j];
    });
  }
};

// What the second pass over a sample has to do.
struct AndersonDecision {
  int32_t count;   // changes that enter the combination; 0: the damped step
  int32_t newest;  // slot of the image change that the evaluation completes; -1: none
  int32_t next;    // slot of the change that the step begins, where there is room for any
  bool keep;       // best_z <- z
  bool restore;    // z <- best_z
  bool advance;    // z <- z + beta r - sum_j gamma_j delta_j

  DEQ_HOST_DEVICE explicit operator bool() const { return keep || restore || advance; }
};

// From b_j = <t_j, r>, by slot, to the weights gamma_j, in place: the solution of
//   (G + lambda L) gamma = b + lambda e_newest,   L = tridiag(-1, 2, -1) by age,
// which minimises ||r - sum_j gamma_j t_j||^2 + lambda ||a||^2, where a holds the weights of the
// iterates that the gammas amount to. By LDL^T, newest change first: a change that depends on newer
// ones gets no weight. Returns whether the weights are of any use.
template <typename Lanes>
DEQ_HOST_DEVICE inline bool mixing_weights(const Lanes& lanes, const AndersonTable& table,
                                           const ChangeRing& ring, double lambda, double share,
                                           double* b) {
  const int64_t count = ring.count;
  for_each_lane(lanes, 0, count, [&](int64_t i) {
    for (int64_t j = 0; j <= i; ++j) {
      const double ridge = j == i ? 2.0 * lambda : (j + 1 == i ? -lambda : 0.0);
      table.factor(i, j) = table.gram(ring.slot(i), ring.slot(j)) + ridge;
    }
  });
  if (lanes.first()) {
    b[ring.newest] += lambda;
  }
  lanes.sync();
  for (int64_t i = 0; i < count; ++i) {
    const double pivot = table.factor(i, i);
    const double norm_sq = table.gram(ring.slot(i), ring.slot(i));
    // Written so that NaN fails every comparison and lands in the guard.
    const bool usable = norm_sq > 0.0 && pivot > share * (norm_sq + 2.0 * lambda) && pivot <= 1e300;
    lanes.sync();  // everyone has read the pivot
    if (usable) {
      for_each_lane(lanes, i + 1, count, [&](int64_t j) {
        const double share_of_i = table.factor(j, i) / pivot;
        double& b_j = b[ring.slot(j)];
        b_j = multiply_add(-share_of_i, b[ring.slot(i)], b_j);
        for (int64_t l = i + 1; l <= j; ++l) {
          double& entry = table.factor(j, l);
          entry = multiply_add(-share_of_i, table.factor(l, i), entry);
        }
      });
    } else if (lanes.first()) {
      table.factor(i, i) = 0.0;
    }
    lanes.sync();
  }
  bool finite = true;
  bool any = false;
  for (int64_t i = count - 1; i >= 0; --i) {
    const double pivot = table.factor(i, i);
    const bool usable = pivot > 0.0;
    const double gamma = usable ? b[ring.slot(i)] / pivot : 0.0;
    finite = finite && std::fabs(gamma) <= kLargestWeight;
    any = any || usable;
    lanes.sync();  // everyone has read b_i
    if (lanes.first()) {
      b[ring.slot(i)] = gamma;
    }
    if (usable) {  // what an unusable change left in its row may not be finite
      for_each_lane(lanes, 0, i, [&](int64_t j) {
        double& b_j = b[ring.slot(j)];
        b_j = multiply_add(-table.factor(i, j), gamma, b_j);
      });
    }
    lanes.sync();
  }
  return any && finite;
}

// Judges the evaluation, and leaves in b, by slot, the coefficients -gamma_j of the changes.
//
// b_j = <t_j, c r> and column_j = <t_j, t_newest> for the
// changes as stored, where there are any. The decision is memory that all lanes see.
template <typename Lanes>
DEQ_HOST_DEVICE inline void conclude_anderson(const Lanes& lanes, const AndersonOptions& options,
                                              const AndersonTable& table, int64_t dim,
                                              const StepNorms& norms, double* b,
                                              const double* column, double* record,
                                              int64_t* counters, AndersonDecision* decision) {
  const int64_t seen = counters[kCount];
  const ChangeRing ring(table.capacity, seen);
  lanes.sync();  // everyone has read the counter
  if (lanes.first()) {
    if (counters[kSteps] == 0) {
      record[kDirectionScale] = 1.0;
    }
    const double residual = norms.residual.root();
    const Verdict verdict = judge(residual, norms.f.root(), options.limits, record, counters);
    const bool advance = verdict.action == Action::kAdvance;
    const bool restore = verdict.action == Action::kReject;
    *decision = {static_cast<int32_t>(ring.count),
                 static_cast<int32_t>(ring.count > 0 ? ring.newest : -1),
                 static_cast<int32_t>(ring.next),
                 verdict.improved,
                 restore,
                 advance};
    counters[kCount] = restore ? 0 : seen + (advance ? 1 : 0);
    if (advance && seen == 0) {
      record[kDirectionScale] = std::ldexp(1.0, direction_exponent(residual, dim, options.range));
    }
  }
  lanes.sync();
  const int64_t count = ring.count;
  if (!decision->advance || count == 0) {
    return;
  }
  table.set_newest(lanes, ring.newest, count, column);
  lanes.sync();
  const double scale = norms.residual.unit * record[kDirectionScale];
  const double lambda = options.regularization * norms.residual.sum * scale * scale;
  if (mixing_weights(lanes, table, ring, lambda, options.dependent_share, b)) {
    for_each_lane(lanes, 0, count, [&](int64_t j) { b[j] = -b[j]; });
  } else if (lanes.first()) {
    decision->count = 0;
  }
  lanes.sync();
}

}  // namespace deq
