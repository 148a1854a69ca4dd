// What one Broyden step of one sample decides from its sums: the same on every backend.
// Formulas: docs/algebra.md, section 1.
#pragma once

#include <cstdint>

#include "algebra/lanes.h"
#include "algebra/macros.h"
#include "algebra/product_form.h"
#include "algebra/termination.h"

namespace deq {

struct StepOptions {
  double damping;       // alpha
  double gamma;         // H_0 = -gamma I
  bool finish_inverse;  // the last secant pair of a sample that stops still enters
  Limits limits;
};

// What the second pass over a sample has to do.
struct StepDecision {
  double scale;   // of H_0 r in the next direction
  int32_t count;  // directions that enter the combination, and the row of the next one
  bool keep;      // best_z <- z
  bool restore;   // z <- best_z
  bool extend;    // write the next direction
  bool advance;   // z <- z + alpha p

  DEQ_HOST_DEVICE explicit operator bool() const { return keep || restore || extend; }
};

// Whether the evaluation at hand is the sample's last, whatever it shows, and nothing follows it:
// then no dots are needed.
DEQ_HOST_DEVICE inline bool only_judges(const StepOptions& options, const int64_t* counters) {
  return !options.finish_inverse && counters[kSteps] + 1 == options.limits.max_steps;
}

// The part of conclude_step that needs no dots.
DEQ_HOST_DEVICE inline StepDecision judge_step(const StepOptions& options, int64_t capacity,
                                               const double* norms_sq, double* record,
                                               int64_t* counters) {
  const Verdict verdict = judge(norms_sq[0], norms_sq[1], options.limits, record, counters);
  const int64_t count = counters[kCount];
  const bool full = count == capacity;
  StepDecision decision = {-1.0, static_cast<int32_t>(count), verdict.improved, false, false,
                           false};
  switch (verdict.action) {
    case Action::kReject:
      counters[kCount] = 0;
      decision.restore = true;
      break;
    case Action::kStop:
      // Where the inverse is wanted, SHINE reads it at the solution: the last secant pair enters.
      decision.extend = options.finish_inverse && !verdict.rejected && count > 0 && !full;
      break;
    case Action::kAdvance:
      decision.extend = true;
      decision.advance = true;
      decision.count = full ? 0 : decision.count;
      break;
  }
  return decision;
}

// Judges the evaluation, and leaves in q the coefficients of the next direction.
//
// norms_sq: ||f(z) - z||^2 and ||f(z)||^2. q_j = <p_j, r> and column_j = <p_j, p_newest> for the
// directions stored. The decision is memory that all lanes see.
template <typename Lanes>
DEQ_HOST_DEVICE inline void conclude_step(const Lanes& lanes, const StepOptions& options,
                                          const ProductForm& form, const double* norms_sq,
                                          double* q, const double* column, double* record,
                                          int64_t* counters, StepDecision* decision) {
  if (lanes.first()) {
    *decision = judge_step(options, form.capacity, norms_sq, record, counters);
  }
  lanes.sync();
  if (!decision->extend) {
    return;
  }
  const int64_t count = decision->count;
  for_each_lane(lanes, 0, count, [&](int64_t j) { q[j] *= -options.gamma; });
  if (count > 0) {
    form.set_newest(lanes, count - 1, column);
  }
  lanes.sync();
  const double scale = direction_coefficients(lanes, form, count, q);
  if (lanes.first()) {
    decision->scale = scale;
    form.step(count) = options.damping;
    counters[kCount] = count + 1;
  }
  lanes.sync();
}

}  // namespace deq
