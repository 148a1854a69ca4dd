// The decisions of a Broyden step: trials, the estimated scale, the scale of the directions, and
// what a full history loses.
#include <algorithm>

#include "algebra/broyden_step.h"
#include "test/check.h"

namespace {

using Vector = std::vector<double>;

TEST(a_trial_may_grow_by_a_summable_allowance) {
  CHECK_NEAR(deq::accepted_residual(2.0, 1.0, 1), 2.0 * (1.25 - 1e-4), 1e-15);
  CHECK_NEAR(deq::accepted_residual(2.0, 0.5, 9), 2.0 * (1.01 - 0.25e-4), 1e-15);
}

TEST(a_step_shrinks_to_the_minimum_of_the_parabola) {
  // phi(t) = base^2 (1 - 2 t) + c t^2 with phi(a) = residual^2.
  const double base = 2.0;
  for (double a : {1.0, 0.7}) {
    for (double residual : {2.5, 4.0}) {
      const double c = (residual * residual - base * base * (1.0 - 2.0 * a)) / (a * a);
      const double minimum = std::min(0.5 * a, base * base / c);
      CHECK_NEAR(deq::shorter_step(base, a, residual), minimum, 1e-14);
    }
    CHECK_NEAR(deq::shorter_step(base, a, 2.0), 0.5 * a, 1e-15);
    for (double residual : {1e9, 1e200, HUGE_VAL, static_cast<double>(NAN)}) {
      CHECK_NEAR(deq::shorter_step(base, a, residual), 0.1 * a, 1e-15);
    }
  }
}

TEST(gamma_is_that_of_barzilai_and_borwein) {
  const Vector r_0 = deq_test::random_vector(9, 1);
  Vector r_1 = deq_test::random_vector(9, 2);
  const double gamma = 0.5;
  const double step = 0.8;
  double pi = 0.0;
  double norm_sq = 0.0;
  double residual_sq = 0.0;
  double s_y = 0.0;
  double y_y = 0.0;
  for (size_t i = 0; i < r_0.size(); ++i) {
    r_1[i] = 0.2 * r_1[i] - 0.3 * r_0[i];
    const double p = gamma * r_0[i];
    const double y = r_1[i] - r_0[i];
    pi += p * r_1[i];
    norm_sq += p * p;
    residual_sq += r_1[i] * r_1[i];
    s_y += step * p * y;
    y_y += y * y;
  }
  CHECK_NEAR(deq::estimate_gamma(gamma, step, pi, norm_sq, residual_sq), -s_y / y_y, 1e-13);
  // <p, r> that turns y along s, that leaves no y, and sums that are not finite: gamma stays.
  CHECK(deq::estimate_gamma(gamma, step, 4.0, 1.0, 64.1) == gamma);
  CHECK(deq::estimate_gamma(gamma, step, 0.5 * 4.0, 1.0, 4.0) == gamma);
  CHECK(deq::estimate_gamma(gamma, step, NAN, 1.0, 4.0) == gamma);
  CHECK(deq::estimate_gamma(gamma, step, 1.0, HUGE_VAL, HUGE_VAL) == gamma);
  CHECK(deq::estimate_gamma(1.0, 1e5, 0.0, 1.0, 1.0) == deq::kMostGamma);
  CHECK(deq::estimate_gamma(1.0, 1e-9, 0.0, 1.0, 1.0) == deq::kLeastGamma);
}

TEST(the_scale_brings_residuals_to_one) {
  const deq::ScaleRange range = deq::ScaleRangeOf<float, float>::value;
  for (double size : {1e-8, 1.0, 1e8}) {
    CHECK(deq::direction_exponent(10.0 * size, 100, range) == 0);
  }
  CHECK(deq::direction_exponent(10.0 * 0x1p-40, 100, range) == 39);
  CHECK(deq::direction_exponent(10.0 * 0x1p40, 100, range) == -41);
  CHECK(deq::direction_exponent(0x1p-125, 1, range) == 96);
  CHECK(deq::direction_exponent(0x1p125, 1, range) == -96);
  const deq::ScaleRange wide = deq::ScaleRangeOf<float, double>::value;
  CHECK(deq::direction_exponent(0x1p-450, 1, wide) == 449);
  // Whose square overflows.
  CHECK(deq::direction_exponent(0x1p-800, 1, wide) == 799);
  CHECK(deq::direction_exponent(0x1p800, 1, wide) == -801);
  // float16 needs it sooner.
  const deq::ScaleRange half = deq::ScaleRangeOf<deq::float16, float>::value;
  CHECK(deq::direction_exponent(0x1p-7, 1, half) == 0);
  CHECK(deq::direction_exponent(0x1p-8, 1, half) == 7);
  CHECK(deq::direction_exponent(0x1p-8, 1, range) == 0);
}

// Three directions stored, room for three, and the sums of the evaluation at hand.
struct Sample {
  static constexpr int64_t kCapacity = 3;
  static constexpr int64_t kMaxSteps = 10;
  Vector table = Vector(deq::ProductForm::table_size(kCapacity));
  double record[deq::kNormColumns + kMaxSteps] = {};
  int64_t counters[deq::kCounterColumns] = {};
  Vector q = {0.3, -0.2, 0.4};
  Vector column = {0.1, 0.2, 3.0};
  deq::StepDecision decision;
  deq::StepOptions options = {
      1.0, 1.0, true, false, false, 0, {1e-8, 1e8, 96}, {0.0, 0.0, kMaxSteps, 0, 1e6, 1}};

  Sample() {
    for (int64_t j = 0; j < kCapacity; ++j) {
      for (int64_t i = 0; i < kCapacity; ++i) {
        form().row(i)[j] = i == j ? 2.0 + static_cast<double>(j) : 0.1 * static_cast<double>(i + j);
      }
      form().step(j) = 1.0 - 0.1 * static_cast<double>(j);
      form().weight(j) = 1.0 / form().gram(j, j);
    }
    record[deq::kFirstResidual] = record[deq::kBestResidual] = 4.0;
    record[deq::kProgressResidual] = record[deq::kBaseResidual] = 4.0;
    record[deq::kGamma] = record[deq::kDirectionScale] = 1.0;
    counters[deq::kCount] = kCapacity;
    counters[deq::kSteps] = 4;
  }

  deq::ProductForm form() { return {table.data(), kCapacity}; }
  void step(double residual) {
    const deq::StepNorms norms = {{residual * residual}, {1.0}};
    deq::conclude_step(deq::OneLane(), options, form(), 16, norms, q.data(), column.data(), record,
                       counters, &decision);
  }
};

TEST(a_full_history_starts_again) {
  Sample sample;
  sample.step(2.0);
  CHECK(sample.decision.extend && sample.decision.advance && !sample.decision.drop);
  CHECK(sample.decision.count == 0 && sample.decision.slot() == 0);
  CHECK(sample.counters[deq::kCount] == 1);
}

TEST(dropping_is_the_algebra_of_the_remaining_factors) {
  Sample sample;
  sample.options.drop_oldest = true;
  // The same from a table that never held the oldest one.
  Vector table(deq::ProductForm::table_size(Sample::kCapacity));
  const deq::ProductForm rest = {table.data(), Sample::kCapacity};
  for (int64_t j = 0; j < 2; ++j) {
    for (int64_t i = 0; i < 2; ++i) {
      rest.row(i)[j] = sample.form().gram(i + 1, j + 1);
    }
    rest.step(j) = sample.form().step(j + 1);
    rest.weight(j) = sample.form().weight(j + 1);
  }
  Vector q = {-sample.q[1], -sample.q[2]};
  rest.set_newest(deq::OneLane(), 1, sample.column.data() + 1);
  const double scale = deq::direction_coefficients(deq::OneLane(), rest, 2, q.data());
  sample.step(2.0);
  CHECK(sample.decision.drop && sample.decision.extend);
  CHECK(sample.decision.count == 3 && sample.decision.slot() == 2);
  CHECK(sample.decision.scale == -scale);
  CHECK(sample.q[0] == 0.0 && sample.q[1] == q[0] && sample.q[2] == q[1]);
  CHECK(sample.counters[deq::kCount] == 3);
  for (int64_t j = 0; j < 2; ++j) {
    CHECK(sample.form().gram(0, j) == rest.gram(0, j));
    CHECK(sample.form().gram(1, j) == rest.gram(1, j));
    CHECK(sample.form().step(j) == rest.step(j));
    CHECK(sample.form().weight(j) == rest.weight(j));
  }
}

TEST(a_sample_that_stops_may_drop_for_its_last_pair) {
  for (const bool drops : {false, true}) {
    Sample sample;
    sample.options.drop_oldest = drops;
    sample.counters[deq::kSteps] = Sample::kMaxSteps - 1;
    sample.step(2.0);
    CHECK(sample.decision.extend == drops && sample.decision.drop == drops);
    CHECK(!sample.decision.advance);
  }
}

TEST(a_trial_is_shortened_until_nothing_is_left_to_try) {
  Sample sample;
  sample.options.max_backtracks = 2;
  sample.step(4.5);
  CHECK(sample.decision.backtrack && !sample.decision.extend && !sample.decision.keep);
  const double first = sample.form().step(2);
  CHECK(first == deq::shorter_step(4.0, 0.8, 4.5));
  CHECK(sample.decision.scale == first - 0.8);
  CHECK(sample.counters[deq::kBacktracks] == 1 && sample.counters[deq::kCount] == 3);
  sample.step(NAN);
  CHECK(sample.decision.backtrack);
  CHECK_NEAR(sample.form().step(2), 0.1 * first, 1e-15);
  CHECK(sample.counters[deq::kRejections] == 0);
  sample.step(5.0);
  CHECK(sample.decision.advance && !sample.decision.backtrack);
  CHECK(sample.counters[deq::kBacktracks] == 0);
  CHECK(sample.record[deq::kBaseResidual] == 5.0);
}

TEST(a_trial_that_cannot_be_shortened_is_rejected_as_ever) {
  Sample sample;
  sample.options.max_backtracks = 2;
  sample.counters[deq::kBacktracks] = 2;
  sample.step(NAN);
  CHECK(sample.decision.restore && sample.counters[deq::kRejections] == 1);
  CHECK(sample.counters[deq::kBacktracks] == 0 && sample.counters[deq::kCount] == 0);
  // At the last evaluation too.
  Sample last;
  last.options.max_backtracks = 2;
  last.counters[deq::kSteps] = Sample::kMaxSteps - 1;
  last.counters[deq::kRejections] = 1;
  last.step(NAN);
  CHECK(last.counters[deq::kStatus] == deq::kDiverged);
}

TEST(a_shortened_trial_may_be_the_best_iterate) {
  Sample sample;
  sample.options.max_backtracks = 2;
  sample.record[deq::kBestResidual] = 5.0;
  sample.record[deq::kBaseResidual] = 2.0;
  sample.step(4.0);
  CHECK(sample.decision.backtrack && sample.decision.keep);
}

TEST(an_estimate_starts_the_history_again_once) {
  Sample sample;
  sample.options.estimate_gamma = true;
  sample.counters[deq::kCount] = 1;
  sample.q[0] = -1.0;  // <p, r>
  sample.column[0] = 16.0;
  sample.step(2.0);
  // y = r - p: <y, y> = 4 + 2 + 16, <s, y> = -17.
  CHECK_NEAR(sample.record[deq::kGamma], 17.0 / 22.0, 1e-14);
  CHECK(sample.decision.count == 0 && sample.counters[deq::kCount] == 1);
  CHECK_NEAR(sample.decision.scale, 17.0 / 22.0, 1e-14);
  sample.step(1.0);
  CHECK(sample.counters[deq::kCount] == 2 && sample.counters[deq::kEstimates] == 1);
}

TEST(directions_and_steps_are_scaled_inversely) {
  Sample sample;
  sample.counters[deq::kCount] = 0;
  sample.record[deq::kFirstResidual] = 1.0;
  sample.step(4.0 * 0x1p-50);  // a root mean square of 2^-50 over 16 elements
  CHECK(sample.record[deq::kDirectionScale] == 0x1p49);
  CHECK(sample.decision.scale == 0x1p49);
  CHECK(sample.decision.step(0.75) == 0.75 * 0x1p-49);
}

}  // namespace
