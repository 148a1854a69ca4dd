// What one step of GMRES decides about one sample from its sums: the same on every backend.
// Formulas: docs/algebra.md, section 5.
//
// Symbols: r(w) = f(w) - w, M the matrix with M v = (r(w_0) - r(w_0 + t v)) / t, v_0 .. v_n the
// orthonormal basis, h the column of the Hessenberg matrix, R its triangle after the rotations.
//
// Serial recurrences are the first lane's; sums that decide something are taken by every lane, each
// in the same order, so that the number of lanes changes no bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/lanes.h"
#include "algebra/macros.h"
#include "algebra/multiply_add.h"
#include "algebra/norms.h"
#include "algebra/termination.h"
#include "algebra/types.h"

namespace deq {

// A cycle ends when the residual it predicts is below this share of the tolerance.
constexpr double kCycleMargin = 0.95;

// The exponents that t may have: t, 1 / t and w_0 + t v are to be numbers of the state.
struct ScaleExponents {
  int least;
  int most;
};

constexpr ScaleExponents scale_exponents(double) { return {-1021, 1022}; }
constexpr ScaleExponents scale_exponents(float) { return {-125, 126}; }
constexpr ScaleExponents scale_exponents(bfloat16) { return {-125, 126}; }
constexpr ScaleExponents scale_exponents(float16) { return {-125, 14}; }

struct GmresOptions {
  double breakdown;  // what is outside the Krylov space below this share of an image is rounding
  ScaleExponents exponents;
  Limits limits;
};

// What is below four units of rounding of the state counts as nothing.
template <typename state_t>
constexpr GmresOptions gmres_options(const Limits& limits) {
  return {4.0 * roundoff(state_t()), scale_exponents(state_t()), limits};
}

// One sample's rank-sized table: four numbers, five vectors and R^-1.
struct GmresTable {
  double* table;  // [table_size(columns)]
  int64_t columns;

  static constexpr int64_t kNumbers = 4;
  static constexpr int64_t kVectors = 5;

  DEQ_HOST_DEVICE static int64_t table_size(int64_t columns) {
    return kNumbers + columns * (kVectors + columns);
  }
  // t, a power of two.
  DEQ_HOST_DEVICE double& scale() const { return table[0]; }
  // ||w_0||.
  DEQ_HOST_DEVICE double& start_norm() const { return table[1]; }
  // The last entry of the rotated ||r_0|| e_1, which is the residual but for its sign.
  DEQ_HOST_DEVICE double& remainder() const { return table[2]; }
  // 1 from an image's first projection to its second, else 0.
  DEQ_HOST_DEVICE double& pending() const { return table[3]; }
  DEQ_HOST_DEVICE double* cosine() const { return vector(0); }
  DEQ_HOST_DEVICE double* sine() const { return vector(1); }
  // <v_j, w_0>.
  DEQ_HOST_DEVICE double* along_start() const { return vector(2); }
  // y, the minimiser being w_0 + sum_j y_j v_j.
  DEQ_HOST_DEVICE double* solution() const { return vector(3); }
  // h, then the column of R.
  DEQ_HOST_DEVICE double* column() const { return vector(4); }
  DEQ_HOST_DEVICE double& inverse(int64_t i, int64_t j) const {
    return vector(kVectors)[i * columns + j];
  }

 private:
  DEQ_HOST_DEVICE double* vector(int64_t which) const { return table + kNumbers + which * columns; }
};

// What f(z) shows of a sample. A sample whose count is zero is at the end of a cycle; the others
// are at w_0 + t v with v the newest of as many vectors.
struct GmresSums {
  static constexpr int64_t kResidual = 0;  // ||r(z)||^2
  static constexpr int64_t kImage = 1;     // ||f(z)||^2
  static constexpr int64_t kPoint = 2;     // ||z||^2
  static constexpr int64_t kAlong = 3;     // <r(z), z>
  static constexpr int64_t kDots = 4;      // <v_j, M v>: only these where the count is above zero
};

// What is known of w_0 where a cycle may begin.
struct GmresStart {
  double norm;   // ||w_0||
  double along;  // <v_0, w_0>
};

// The same from the sums; false where they do not tell it, as their terms left the range of a
// double. ||f(z)|| is the measure: what vanishes beside it is of no account.
DEQ_HOST_DEVICE inline bool read_start(const double* sums, double residual, GmresStart* start) {
  const double point_sq = sums[GmresSums::kPoint];
  const double f_sq = sums[GmresSums::kImage];
  *start = {std::sqrt(point_sq), sums[GmresSums::kAlong] / residual};
  return !leaves_range(point_sq > f_sq ? point_sq : f_sq);
}

// What is left of M v after the first projection.
struct GmresRest {
  static constexpr int64_t kNorm = 0;   // its squared norm
  static constexpr int64_t kAlong = 1;  // its product with w_0
  static constexpr int64_t kDots = 2;   // its products with the v_j
};

enum class GmresMove : int8_t {
  kNone,
  kRestore,  // z <- best_z
  kRelax,    // z <- f(z)
  kBegin,    // w_0 <- z, v_0 <- r(z) / ||r(z)||, z <- w_0 + t v_0
  kProject,  // the image, M v, loses its part in the basis
};

struct GmresDecision {
  double factor;  // 1 / ||r(z)|| where a cycle begins
  int32_t count;  // vectors of the basis that the move reads
  GmresMove move;
  bool keep;  // best_z <- z

  DEQ_HOST_DEVICE explicit operator bool() const { return keep || move != GmresMove::kNone; }
};

// The end of the step of a sample that had an image.
struct GmresExtension {
  double factor;  // 1 / ||rest||
  int32_t count;  // vectors of the basis that are combined
  bool extend;    // a further v, and z <- w_0 + t v
  bool end;       // z <- w_0 + sum_j y_j v_j

  DEQ_HOST_DEVICE explicit operator bool() const { return extend || end; }
};

// t for the larger one of ||w_0|| and ||f(w_0)||: the power of two that is two to four times as
// large, as far as the exponents go. Most of the rounding in the difference of residuals is then
// that of t v.
DEQ_HOST_DEVICE inline double probe_scale(double size, const ScaleExponents& exponents) {
  int exponent = 0;
  std::frexp(size, &exponent);
  ++exponent;
  exponent = exponent < exponents.least ? exponents.least : exponent;
  return std::ldexp(1.0, exponent > exponents.most ? exponents.most : exponent);
}

// Judges the end of a cycle and begins the next one, or takes in the first dots of an image; in the
// place of the dots it leaves the coefficients of the projection.
template <typename Lanes>
DEQ_HOST_DEVICE inline void conclude_gmres_evaluation(
    const Lanes& lanes, const GmresOptions& options, const GmresTable& table, int64_t count,
    const StepNorms& measured, const GmresStart& start, double* sums, double* record,
    int64_t* counters, GmresDecision* decision) {
  if (count > 0) {
    double* const dots = sums + GmresSums::kDots;
    for_each_lane(lanes, 0, count, [&](int64_t j) {
      table.column()[j] = dots[j];
      dots[j] = -dots[j];
    });
    if (lanes.first()) {
      table.pending() = 1.0;
      *decision = {0.0, static_cast<int32_t>(count), GmresMove::kProject, false};
    }
    return;
  }
  if (!lanes.first()) {
    return;
  }
  table.pending() = 0.0;
  const double residual = measured.residual.root();
  const double f_norm = measured.f.root();
  const Verdict verdict = judge(residual, f_norm, options.limits, record, counters);
  *decision = {0.0, 0, GmresMove::kNone, verdict.improved};
  if (verdict.action == Action::kReject) {
    decision->move = GmresMove::kRestore;
  }
  if (verdict.action != Action::kAdvance) {
    return;
  }
  const double factor = 1.0 / residual;
  // Only the end of a cycle could still be evaluated, or v_0 is no vector of numbers.
  if (options.limits.max_steps - counters[kSteps] < 2 || !(factor < HUGE_VAL)) {
    decision->move = GmresMove::kRelax;
    return;
  }
  table.scale() = probe_scale(start.norm > f_norm ? start.norm : f_norm, options.exponents);
  table.start_norm() = start.norm;
  table.remainder() = residual;
  table.along_start()[0] = start.along;
  counters[kCount] = 1;
  decision->move = GmresMove::kBegin;
  decision->factor = factor;
}

// Appends the column (h, height) to the least-squares problem of `newest` + 1 columns. Returns
// whether it adds anything; one that does not is left out of the solution.
template <typename Lanes>
DEQ_HOST_DEVICE inline bool append_hessenberg_column(const Lanes& lanes, const GmresTable& table,
                                                     int64_t newest, double height,
                                                     double smallest) {
  double* const column = table.column();
  if (lanes.first()) {
    double rotated = column[0];
    for (int64_t j = 0; j < newest; ++j) {
      const double c = table.cosine()[j];
      const double s = table.sine()[j];
      const double next = column[j + 1];
      column[j] = multiply_add(c, rotated, s * next);
      rotated = multiply_add(c, next, -(s * rotated));
    }
    column[newest] = rotated;
  }
  lanes.sync();
  const double above = column[newest];
  const double last = table.remainder();
  const double diagonal = std::sqrt(multiply_add(above, above, height * height));
  lanes.sync();  // every lane has read the remainder
  if (!(diagonal > smallest)) {
    return false;
  }
  const double c = above / diagonal;
  const double s = height / diagonal;
  // The column of R^-1 that belongs to the new one of R, and its share of y = R^-1 g.
  for_each_lane(lanes, 0, newest, [&](int64_t i) {
    double sum = 0.0;
    DEQ_UNROLL_TWICE
    for (int64_t j = i; j < newest; ++j) {
      sum = multiply_add(table.inverse(i, j), column[j], sum);
    }
    table.inverse(i, newest) = -sum / diagonal;
    double& y = table.solution()[i];
    y = multiply_add(c * last, table.inverse(i, newest), y);
  });
  if (lanes.first()) {
    table.inverse(newest, newest) = 1.0 / diagonal;
    table.solution()[newest] = c * last / diagonal;
    table.cosine()[newest] = c;
    table.sine()[newest] = s;
    table.remainder() = -s * last;
  }
  lanes.sync();
  return true;
}

// The tolerance at the minimiser w, with ||f(w)|| >= ||w|| - ||r|| and w = w_0 + sum_j y_j v_j.
// ||w||^2 is taken in units of t, where no size of the state makes it leave the range of a double.
DEQ_HOST_DEVICE inline double tolerance_at_minimiser(const GmresTable& table, int64_t known,
                                                     double predicted, const Limits& limits) {
  const double scale = table.scale();
  const double share = 1.0 / scale;
  const double start = share * table.start_norm();
  double w_sq = start * start;
  for (int64_t j = 0; j < known; ++j) {
    const double y = share * table.solution()[j];
    w_sq = multiply_add(y, multiply_add(2.0, share * table.along_start()[j], y), w_sq);
  }
  const double f_norm = scale * std::sqrt(w_sq > 0.0 ? w_sq : 0.0) - predicted;
  return limits.atol + limits.rtol * (f_norm > 0.0 ? f_norm : 0.0);
}

// Takes in the rest of the image after its first projection, and extends the basis by it or ends
// the cycle; in the place of the dots it leaves the coefficients of what follows.
template <typename Lanes>
DEQ_HOST_DEVICE inline void conclude_gmres_image(const Lanes& lanes, const GmresOptions& options,
                                                 const GmresTable& table, int64_t count,
                                                 double* sums, double* record, int64_t* counters,
                                                 GmresExtension* decision) {
  const Limits& limits = options.limits;
  const int64_t newest = count - 1;
  double* const dots = sums + GmresRest::kDots;
  double again_sq = 0.0;
  double again_along = 0.0;
  for (int64_t j = 0; j < count; ++j) {
    again_sq = multiply_add(dots[j], dots[j], again_sq);
    again_along = multiply_add(dots[j], table.along_start()[j], again_along);
  }
  for_each_lane(lanes, 0, count, [&](int64_t j) { table.column()[j] += dots[j]; });
  lanes.sync();
  double image_sq = 0.0;
  for (int64_t j = 0; j < count; ++j) {
    image_sq = multiply_add(table.column()[j], table.column()[j], image_sq);
  }
  // The rest's part in the basis is of the size of rounding: what it takes off is exact enough.
  const double rest_sq = sums[GmresRest::kNorm] - again_sq;
  const double rest = std::sqrt(rest_sq < 0.0 ? 0.0 : rest_sq);
  image_sq = multiply_add(rest, rest, image_sq);
  const bool finite = image_sq < HUGE_VAL;  // not where it is NaN
  const int64_t step = counters[kSteps];
  lanes.sync();  // every lane has read the table and the counters
  if (!finite) {
    for_each_lane(lanes, 0, newest, [&](int64_t j) { dots[j] = table.solution()[j]; });
    if (lanes.first()) {
      record[kNormColumns + step] = NAN;
      counters[kSteps] = step + 1;
      counters[kCount] = 0;
      *decision = {0.0, static_cast<int32_t>(newest), false, false};
      if (counters[kRejections] >= limits.max_rejections) {
        counters[kStatus] = kDiverged;
      } else {
        ++counters[kRejections];
        decision->end = true;
      }
    }
    return;
  }
  // M v is known to a rounding of its own length and of that of v, which is 1.
  const double smallest = options.breakdown * std::sqrt(image_sq > 1.0 ? image_sq : 1.0);
  const double height = rest > smallest ? rest : 0.0;
  const bool taken = append_hessenberg_column(lanes, table, newest, height, smallest);
  const int64_t known = taken ? count : newest;
  const double predicted = std::fabs(table.remainder());
  const int64_t remaining = limits.max_steps - (step + 1);
  const bool ended =
      !taken || height == 0.0 || count == table.columns || remaining < 2 ||
      predicted <= kCycleMargin * tolerance_at_minimiser(table, known, predicted, limits);
  const double factor = 1.0 / rest;
  for_each_lane(lanes, 0, ended ? known : count,
                [&](int64_t j) { dots[j] = ended ? table.solution()[j] : -dots[j] * factor; });
  if (lanes.first()) {
    record[kNormColumns + step] = predicted;
    counters[kSteps] = step + 1;
    if (!ended) {
      table.along_start()[count] = (sums[GmresRest::kAlong] - again_along) * factor;
    }
    counters[kCount] = ended ? 0 : count + 1;
    *decision = {factor, static_cast<int32_t>(ended ? known : count), !ended, ended};
  }
}

}  // namespace deq
