// A test is a function registered by TEST(name); CHECK fails it with the line and the values.
#pragma once

#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace deq_test {

struct Test {
  std::string name;
  std::function<void()> body;
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, std::function<void()> body) { tests().push_back({name, body}); }
};

inline void check(bool holds, const char* expression, const char* file, int line) {
  if (!holds) {
    ++failures();
    std::printf("%s:%d: failed: %s\n", file, line, expression);
  }
}

inline void check_near(double actual, double expected, double tolerance, const char* file,
                       int line) {
  // Written so that NaN fails.
  if (!(std::fabs(actual - expected) <= tolerance * (1.0 + std::fabs(expected)))) {
    ++failures();
    std::printf("%s:%d: %.17g is not within %g of %.17g\n", file, line, actual, tolerance,
                expected);
  }
}

inline std::vector<double> random_vector(int64_t size, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  std::vector<double> values(static_cast<size_t>(size));
  for (double& value : values) {
    value = normal(generator);
  }
  return values;
}

}  // namespace deq_test

#define TEST(name)                                                     \
  static void test_##name();                                           \
  static const deq_test::Register register_##name(#name, test_##name); \
  static void test_##name()
#define CHECK(expression) deq_test::check((expression), #expression, __FILE__, __LINE__)
#define CHECK_NEAR(actual, expected, tolerance) \
  deq_test::check_near((actual), (expected), (tolerance), __FILE__, __LINE__)
