// The stopping rule, case by case.
#include "algebra/termination.h"

#include "test/check.h"

namespace {

struct Sample {
  double norms[deq::kNormColumns + 10] = {};
  int64_t counters[deq::kCounterColumns] = {};
  const double* trace = norms + deq::kNormColumns;

  deq::Limits limits = {1e-3, 0.0, 10, 3, 100.0, 1};

  deq::Verdict judge(double residual, double f_norm) {
    return deq::judge(residual, f_norm, limits, norms, counters);
  }
  int64_t status() const { return counters[deq::kStatus]; }
};

TEST(converges_on_the_relative_or_the_absolute_tolerance) {
  Sample sample;
  CHECK(sample.judge(0.01, 6.0).action == deq::Action::kAdvance);
  const deq::Verdict verdict = sample.judge(0.01, 10.0);
  CHECK(verdict.action == deq::Action::kStop);
  CHECK(verdict.improved);
  CHECK(sample.status() == deq::kConverged);
  CHECK(sample.counters[deq::kSteps] == 2);

  Sample absolute;
  absolute.limits.atol = 0.5;
  CHECK(absolute.judge(0.5, 0.0).action == deq::Action::kStop);
  CHECK(absolute.status() == deq::kConverged);
}

TEST(a_residual_that_stays_while_the_image_grows_never_converges) {
  for (double growth : {1.5, 3.0, 1e6}) {
    Sample sample;
    sample.limits.stall_steps = 0;
    double f_norm = 1.0;
    for (int i = 0; i < 9; ++i) {
      CHECK(sample.judge(1.0, f_norm).action == deq::Action::kAdvance);
      f_norm *= growth;
    }
  }
}

TEST(a_residual_that_halves_while_the_image_grows_converges) {
  // At once.
  Sample leap;
  leap.judge(1.0, 1.0);
  CHECK(leap.judge(0.5, 600.0).action == deq::Action::kStop);
  // Since the image was half as large, however small the first residual was.
  Sample sample;
  sample.limits.divergence_factor = 1e9;
  sample.judge(1e-6, 1e-6);
  CHECK(sample.judge(0.3, 400.0).action == deq::Action::kAdvance);
  CHECK(sample.judge(0.16, 500.0).action == deq::Action::kAdvance);
  CHECK(sample.judge(0.15, 500.0).action == deq::Action::kStop);
  CHECK(sample.status() == deq::kConverged);
  // An absolute tolerance asks for nothing more.
  Sample absolute;
  absolute.limits.atol = 1.0;
  absolute.judge(1.1, 1e-3);
  CHECK(absolute.judge(1.0, 600.0).action == deq::Action::kStop);
}

TEST(a_rejected_evaluation_and_a_trial_mark_no_growth) {
  Sample sample;
  sample.judge(4.0, 1.0);
  CHECK(sample.judge(1e3, 1e4).action == deq::Action::kReject);
  const deq::Trial trial = {true, 5.0};
  CHECK(deq::judge(300.0, 100.0, sample.limits, sample.norms, sample.counters, trial).action ==
        deq::Action::kBacktrack);
  CHECK(sample.norms[deq::kMarkedImage] == 1.0);
  CHECK(sample.norms[deq::kMarkedResidual] == HUGE_VAL);
  sample.judge(3.0, 2.5);
  CHECK(sample.norms[deq::kMarkedImage] == 2.5);
  CHECK(sample.norms[deq::kMarkedResidual] == 3.0);
}

TEST(the_best_iterate_is_the_smallest_residual) {
  Sample sample;
  CHECK(sample.judge(4.0, 1.0).improved);
  CHECK(!sample.judge(5.0, 1.0).improved);
  CHECK(sample.judge(3.0, 1.0).improved);
  CHECK_NEAR(sample.norms[deq::kBestResidual], 3.0, 1e-15);
  CHECK_NEAR(sample.norms[deq::kFirstResidual], 4.0, 1e-15);
  CHECK_NEAR(sample.trace[1], 5.0, 1e-15);
}

TEST(the_steps_run_out) {
  Sample sample;
  sample.limits.max_steps = 2;
  CHECK(sample.judge(4.0, 1.0).action == deq::Action::kAdvance);
  CHECK(sample.judge(2.0, 1.0).action == deq::Action::kStop);
  CHECK(sample.status() == deq::kMaxSteps);
}

TEST(a_bad_residual_is_rejected_once_then_diverges) {
  for (double bad : {static_cast<double>(NAN), HUGE_VAL, 401.0}) {
    Sample sample;
    sample.judge(4.0, 1.0);
    const deq::Verdict verdict = sample.judge(bad, 1.0);
    CHECK(verdict.action == deq::Action::kReject);
    CHECK(!verdict.improved);
    CHECK(sample.judge(4.0, 1.0).action == deq::Action::kAdvance);
    CHECK(sample.judge(bad, 1.0).action == deq::Action::kStop);
    CHECK(sample.status() == deq::kDiverged);
    CHECK_NEAR(sample.norms[deq::kBestResidual], 4.0, 1e-15);
  }
}

TEST(a_bad_last_residual_is_marked_as_rejected) {
  Sample sample;
  sample.limits.max_steps = 2;
  CHECK(!sample.judge(4.0, 1.0).rejected);
  const deq::Verdict verdict = sample.judge(NAN, 1.0);
  CHECK(verdict.action == deq::Action::kStop);
  CHECK(verdict.rejected);
  CHECK(!verdict.improved);
  CHECK(sample.status() == deq::kMaxSteps);
}

TEST(a_bad_first_residual_diverges_and_keeps_the_start) {
  Sample sample;
  const deq::Verdict verdict = sample.judge(NAN, 1.0);
  CHECK(verdict.action == deq::Action::kStop);
  CHECK(verdict.improved);
  CHECK(sample.status() == deq::kDiverged);
  CHECK(sample.norms[deq::kBestResidual] == HUGE_VAL);
}

TEST(stalls_after_steps_without_one_percent) {
  Sample sample;
  sample.judge(4.0, 1.0);
  sample.judge(3.999, 1.0);
  CHECK(sample.judge(3.998, 1.0).action == deq::Action::kAdvance);
  const deq::Verdict verdict = sample.judge(3.997, 1.0);
  CHECK(verdict.action == deq::Action::kStop);
  CHECK(verdict.improved);
  CHECK(sample.status() == deq::kStalled);

  Sample never;
  never.limits.stall_steps = 0;
  for (int i = 0; i < 9; ++i) {
    CHECK(never.judge(4.0, 1.0).action == deq::Action::kAdvance);
  }
}

TEST(counters_are_no_less_than_zero_and_far_from_overflow) {
  Sample sample;
  CHECK(deq::first_bad_counter(sample.counters) == deq::kCounterColumns);
  for (int64_t column = deq::kStatus + 1; column < deq::kCounterColumns; ++column) {
    for (const int64_t bad : {int64_t(-1), INT64_MIN, deq::kMostCounted + 1, INT64_MAX}) {
      Sample other;
      other.counters[column] = bad;
      CHECK(deq::first_bad_counter(other.counters) == column);
    }
  }
}

}  // namespace
