// Which evaluations of a structured cell have to be exact.
#include "algebra/cell_precision.h"

#include "test/check.h"

namespace {

using deq::CellAction;
using deq::CellDecision;
using deq::CellPrecision;
using deq::Crop;
using deq::Limits;

constexpr double kTolerance = 1e-6;

// A sample whose residuals are given; it looks back from the second on.
class Sample {
 public:
  explicit Sample(int64_t max_steps = 100, int64_t stall_steps = 0, bool approximate = true)
      : precision_(approximate) {
    limits_.max_steps = max_steps;
    limits_.stall_steps = stall_steps;
  }

  // Whether the next evaluation has to be exact.
  bool follow(double residual, CellAction action = CellAction::kAdvance) {
    // With the sums over u and r, the share is 1/2.
    const double sums[deq::kCellSums] = {residual * residual, 1.0, 2.0, 0.0, 0.0, -1.0};
    if (precision_.exact()) {
      ++counters[deq::kSteps];
      last.residual = residual;
      precision_.follow_exact(residual, kTolerance, limits_, {action, true, {}},
                              counters[deq::kSteps]);
    } else {
      decision = precision_.follow_approximate(sums, kTolerance, limits_, &traced, counters, &last);
    }
    return precision_.exact();
  }

  bool exact() const { return precision_.exact(); }

  Crop last = {1, true, 0.0};
  CellDecision decision = {};
  double traced = 0.0;
  int64_t counters[deq::kCounterColumns] = {};

 private:
  CellPrecision precision_;
  Limits limits_ = {};
};

TEST(precision_first_and_from_time_to_time) {
  Sample sample;
  CHECK(sample.exact());
  CHECK(!sample.follow(1.0));
  CHECK(!sample.follow(0.5));
  CHECK(!sample.follow(0.1));
  CHECK(sample.follow(0.05));  // below a sixteenth of the last exact one
  CHECK(!sample.follow(0.045));
  CHECK(!sample.follow(0.04));  // which is that one now
  Sample never(100, 0, false);
  CHECK(never.follow(1.0) && never.follow(0.5));
}

TEST(precision_records_and_looks_back) {
  Sample sample;
  sample.follow(1.0);
  sample.follow(0.5);
  CHECK(sample.traced == 0.5);
  CHECK(sample.counters[deq::kSteps] == 2);
  CHECK(sample.counters[deq::kStatus] == deq::kRunning);
  CHECK(sample.decision.action == CellAction::kAdvance && !sample.decision.improved);
  CHECK(sample.decision.weights.share == 0.5 && sample.decision.weights.momentum == 0.0);
  CHECK(sample.last.known == 2 && sample.last.combined && sample.last.residual == 0.5);
}

TEST(precision_goes_back_to_exact) {
  for (double residual : {2.0, 0.6, static_cast<double>(NAN), static_cast<double>(HUGE_VAL)}) {
    Sample sample;
    sample.follow(1.0);
    sample.follow(0.5);
    CHECK(sample.follow(residual));
    CHECK(sample.decision.action == CellAction::kGoBack);
    CHECK(sample.last.known == 0);
  }
  // There is nothing before a damped step to go back to.
  Sample damped;
  damped.follow(1.0);
  damped.last.combined = false;
  CHECK(damped.follow(0.96));
  CHECK(damped.decision.action == CellAction::kRepeat);
  Sample taken_back;
  CHECK(taken_back.follow(1.0, CellAction::kGoBack));
}

TEST(precision_is_exact_where_steps_are_short) {
  Sample sample;
  sample.follow(1.0);
  CHECK(!sample.follow(0.9));
  CHECK(sample.follow(0.88));
  CHECK(sample.decision.action == CellAction::kAdvance);
  CHECK(sample.follow(0.87));
  CHECK(!sample.follow(0.8));
}

TEST(precision_is_exact_at_the_end) {
  Sample sample;
  sample.follow(1e-5);
  CHECK(!sample.follow(5e-6));
  CHECK(sample.follow(2.5e-6));  // 1.25e-6 is foreseen, near the tolerance
  Sample met;
  met.follow(1e-5);
  CHECK(met.follow(0.9e-6));
  Sample last(4);
  CHECK(!last.follow(1.0));
  CHECK(!last.follow(0.9));
  CHECK(last.follow(0.8));  // the fourth is the last
}

TEST(precision_limits_the_run_of_approximations) {
  Sample sample;
  double residual = 1.0;
  sample.follow(residual);
  int64_t run = 0;
  while (!sample.follow(residual *= 0.9)) {
    ++run;
  }
  CHECK(run + 1 == deq::kMostApproximate);
  // An exact one must come before the sample counts as stalled.
  Sample stalling(100, 3);
  stalling.follow(1.0);
  CHECK(!stalling.follow(0.9));
  CHECK(stalling.follow(0.8));
  Sample hasty(100, 1);
  CHECK(hasty.follow(1.0));
}

TEST(precision_is_given_up_where_it_misleads) {
  Sample sample;
  sample.follow(1.0);
  sample.follow(0.5);
  CHECK(sample.follow(0.05));
  CHECK(sample.follow(0.11));  // more than twice what it seemed
  for (double residual : {0.1, 0.05, 0.02}) {
    CHECK(sample.follow(residual));
  }
}

}  // namespace
