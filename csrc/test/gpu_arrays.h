// Random stored vectors for the tests of kernel bodies, in every storage type.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "cuda/convert.h"
#include "cuda/plan.h"
#include "test/check.h"

namespace deq_test {

template <typename T>
constexpr double kTolerance = 1e-11;
template <>
inline constexpr double kTolerance<float> = 2e-5;
template <>
inline constexpr double kTolerance<deq::float16> = 4e-3;
template <>
inline constexpr double kTolerance<deq::bfloat16> = 3e-2;

// The loosest of the types that a result went through.
template <typename state_t, typename history_t>
constexpr double tolerance_of() {
  return kTolerance<state_t> > kTolerance<history_t> ? kTolerance<state_t> : kTolerance<history_t>;
}

template <typename T>
T stored(double x) {
  T out;
  deq::narrow(static_cast<deq::accumulate_t<T>>(x), &out);
  return out;
}

// What a double becomes in storage.
template <typename T>
double rounded(double x) {
  return static_cast<double>(deq::widen(stored<T>(x)));
}

// [batch, rows, dim] whose rows are `stride` elements apart. Gaps hold NaN.
template <typename T>
struct Array {
  int64_t rows;
  int64_t dim;
  int64_t stride;
  std::vector<T> values;

  Array(int64_t batch, int64_t rows_, int64_t dim_, int64_t stride_)
      : rows(rows_), dim(dim_), stride(stride_) {
    values.assign(static_cast<size_t>(batch * rows * stride), stored<T>(std::nan("")));
  }

  T* row(int64_t sample, int64_t j) { return values.data() + (sample * rows + j) * stride; }
  double at(int64_t sample, int64_t j, int64_t i) {
    return static_cast<double>(deq::widen(row(sample, j)[i]));
  }
  void set(int64_t sample, int64_t j, int64_t i, double x) { row(sample, j)[i] = stored<T>(x); }
  void set_random(int64_t sample, int64_t j, unsigned seed) {
    const std::vector<double> x = random_vector(dim, seed);
    for (int64_t i = 0; i < dim; ++i) {
      set(sample, j, i, x[static_cast<size_t>(i)]);
    }
  }
  bool aligned() const { return stride * static_cast<int64_t>(sizeof(T)) % 16 == 0; }
};

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  // An empty vector has no data, which memcmp must not be given.
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Within tolerance of each other relative to the largest entry; NaN where NaN is expected.
inline bool near(const std::vector<double>& actual, const std::vector<double>& expected,
                 double tolerance) {
  double largest = 1e-300;
  for (double x : expected) {
    largest = std::isfinite(x) ? std::max(largest, std::fabs(x)) : largest;
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool both_nan = std::isnan(actual[i]) && std::isnan(expected[i]);
    const bool both_infinite = std::isinf(actual[i]) && actual[i] == expected[i];
    if (!both_nan && !both_infinite &&
        !(std::fabs(actual[i] - expected[i]) <= tolerance * largest)) {
      return false;
    }
  }
  return actual.size() == expected.size();
}

inline deq::GpuDevice device_with(int64_t shared_bytes, int64_t max_cluster) {
  return {132, shared_bytes, max_cluster};
}

inline constexpr const char* kRegimes[] = {"block", "cluster", "grid"};

}  // namespace deq_test
