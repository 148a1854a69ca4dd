// Runs every registered test; the last line says how many passed and failed.
#include "test/check.h"

int main() {
  int failed_tests = 0;
  for (const deq_test::Test& test : deq_test::tests()) {
    const int before = deq_test::failures();
    test.body();
    const bool failed = deq_test::failures() != before;
    failed_tests += failed ? 1 : 0;
    std::printf("%s %s\n", failed ? "FAIL" : "ok  ", test.name.c_str());
  }
  const int passed = static_cast<int>(deq_test::tests().size()) - failed_tests;
  std::printf("%d passed, %d failed\n", passed, failed_tests);
  return failed_tests == 0 ? 0 : 1;
}
