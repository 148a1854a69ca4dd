// What one Broyden step of one sample decides from its sums: the same on every backend.
// Formulas: docs/algebra.md, section 1.
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/direction_scale.h"
#include "algebra/initial_scale.h"
#include "algebra/lanes.h"
#include "algebra/line_search.h"
#include "algebra/macros.h"
#include "algebra/norms.h"
#include "algebra/product_form.h"
#include "algebra/termination.h"

namespace deq {

struct StepOptions {
  double damping;          // alpha
  double gamma;            // H_0 = -gamma I
  bool finish_inverse;     // the last secant pair of a sample that stops still enters
  bool drop_oldest;        // a full history loses its oldest factor instead of all
  bool estimate_gamma;     // once per sample, from its first step
  int64_t max_backtracks;  // how often a step is shortened
  ScaleRange range;
  Limits limits;
};

// What the second pass over a sample has to do.
struct StepDecision {
  double scale;        // of r in the next direction; of the newest direction in a step back
  int32_t count;       // directions that enter the combination
  int16_t exponent;    // directions are stored times 2^exponent
  bool keep : 1;       // best_z <- z
  bool restore : 1;    // z <- best_z
  bool extend : 1;     // write the next direction
  bool advance : 1;    // z <- z + alpha p
  bool drop : 1;       // the stored directions move up one row, over the oldest
  bool backtrack : 1;  // z <- z + scale p_newest

  DEQ_HOST_DEVICE explicit operator bool() const { return keep || restore || extend || backtrack; }
  // The row of the next direction.
  DEQ_HOST_DEVICE int32_t slot() const { return drop ? count - 1 : count; }
  // What the next direction, as stored, is multiplied with on its way to z.
  DEQ_HOST_DEVICE double step(double damping) const { return std::ldexp(damping, -exponent); }
};

// Whether the evaluation at hand is the sample's last, whatever it shows, and nothing follows it:
// then no dots are needed.
DEQ_HOST_DEVICE inline bool only_judges(const StepOptions& options, const int64_t* counters) {
  return !options.finish_inverse && counters[kSteps] + 1 == options.limits.max_steps;
}

// Whether the scale of the initial inverse changes, and with it the sample's history begins again.
DEQ_HOST_DEVICE inline bool estimates_gamma(const ProductForm& form, const SquaredNorm& residual,
                                            double pi, double norm_sq, double* record,
                                            int64_t* counters) {
  if (counters[kCount] != 1 || counters[kEstimates] != 0) {
    return false;
  }
  ++counters[kEstimates];
  const double before = record[kGamma];
  const double scale = residual.unit * record[kDirectionScale];
  const double scaled_sq = residual.sum * scale * scale;
  record[kGamma] = estimate_gamma(before, form.step(0), pi, norm_sq, scaled_sq);
  return record[kGamma] != before;
}

// The part of conclude_step that is no rank-sized algebra; q and column as there.
DEQ_HOST_DEVICE inline StepDecision judge_step(const StepOptions& options, const ProductForm& form,
                                               int64_t dim, const StepNorms& norms, const double* q,
                                               const double* column, double* record,
                                               int64_t* counters) {
  if (counters[kSteps] == 0) {
    record[kGamma] = options.gamma;
    record[kDirectionScale] = 1.0;
  }
  const int64_t count = counters[kCount];
  const bool full = count == form.capacity;
  const bool drops = options.drop_oldest && form.capacity > 1;
  const double residual = norms.residual.root();
  Trial trial = {count > 0 && counters[kBacktracks] < options.max_backtracks, 0.0};
  if (trial.can_shorten && !only_judges(options, counters)) {
    trial.accepted =
        accepted_residual(record[kBaseResidual], form.step(count - 1), counters[kSteps]);
  }
  const Verdict verdict = judge(residual, norms.f.root(), options.limits, record, counters, trial);
  StepDecision decision = {};
  decision.count = static_cast<int32_t>(count);
  decision.keep = verdict.improved;
  switch (verdict.action) {
    case Action::kReject:
      counters[kCount] = 0;
      counters[kBacktracks] = 0;
      decision.restore = true;
      break;
    case Action::kStop:
      // Where the inverse is wanted, SHINE reads it at the solution: the last secant pair enters.
      decision.extend =
          options.finish_inverse && !verdict.rejected && count > 0 && (!full || drops);
      decision.drop = decision.extend && full;
      break;
    case Action::kBacktrack: {
      const double step = form.step(count - 1);
      const double shorter = shorter_step(record[kBaseResidual], step, residual);
      form.step(count - 1) = shorter;
      ++counters[kBacktracks];
      decision.scale = (shorter - step) / record[kDirectionScale];
      decision.backtrack = true;
      break;
    }
    case Action::kAdvance:
      decision.extend = true;
      decision.advance = true;
      decision.drop = full && drops;
      if (full && !drops) {
        decision.count = 0;
      }
      if (options.estimate_gamma &&
          estimates_gamma(form, norms.residual, q[0], column[0], record, counters)) {
        decision.count = 0;
      }
      if (decision.count == 0) {
        record[kDirectionScale] = std::ldexp(1.0, direction_exponent(residual, dim, options.range));
      }
      record[kBaseResidual] = residual;
      counters[kBacktracks] = 0;
      break;
  }
  if (decision.advance) {
    int exponent = 0;
    std::frexp(record[kDirectionScale], &exponent);
    decision.exponent = static_cast<int16_t>(exponent - 1);
  }
  return decision;
}

// Judges the evaluation, and leaves in q the coefficients of the next direction.
//
// q_j = <p_j, c r> and column_j = <p_j, p_newest> for the
// directions stored, c their scale. The decision is memory that all lanes see.
template <typename Lanes>
DEQ_HOST_DEVICE inline void conclude_step(const Lanes& lanes, const StepOptions& options,
                                          const ProductForm& form, int64_t dim,
                                          const StepNorms& norms, double* q, const double* column,
                                          double* record, int64_t* counters,
                                          StepDecision* decision) {
  if (lanes.first()) {
    *decision = judge_step(options, form, dim, norms, q, column, record, counters);
  }
  lanes.sync();
  if (!decision->extend) {
    return;
  }
  const int64_t count = decision->slot();
  if (decision->drop) {
    form.drop_oldest(lanes);
    if (lanes.first()) {
      q[0] = 0.0;
    }
    ++q;
    ++column;
  }
  const double gamma = record[kGamma];
  for_each_lane(lanes, 0, count, [&](int64_t j) { q[j] *= -gamma; });
  if (count > 0) {
    form.set_newest(lanes, count - 1, column);
  }
  lanes.sync();
  const double scale = direction_coefficients(lanes, form, count, q);
  if (lanes.first()) {
    decision->scale = -gamma * scale * record[kDirectionScale];
    form.step(count) = options.damping;
    counters[kCount] = count + 1;
  }
  lanes.sync();
}

}  // namespace deq
