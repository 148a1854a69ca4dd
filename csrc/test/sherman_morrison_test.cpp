// The scalar of a Sherman-Morrison append, and what makes it refuse a pair.
#include "algebra/sherman_morrison.h"

#include "test/check.h"

namespace {

TEST(scale_is_one_over_v_dot_y) {
  const double u_dot_s[] = {2.0, -1.0};
  const double v_dot_y[] = {0.5, 4.0};
  // <v, y> = -0.7 * 3 + 2 * 0.5 - 1 * 4
  CHECK_NEAR(deq::sherman_morrison_scale(3.0, 4.0, 9.0, -0.7, 2, u_dot_s, v_dot_y), 1.0 / -5.1,
             1e-14);
}

TEST(degenerate_pairs_are_refused) {
  const double u_dot_s[] = {2.0};
  const double cancels[] = {1.5};
  CHECK(deq::sherman_morrison_scale(3.0, 4.0, 9.0, -1.0, 1, u_dot_s, cancels) == 0.0);
  CHECK(deq::sherman_morrison_scale(0.0, 0.0, 9.0, -1.0, 0, nullptr, nullptr) == 0.0);
  CHECK(deq::sherman_morrison_scale(NAN, 4.0, 9.0, -1.0, 0, nullptr, nullptr) == 0.0);
  CHECK(deq::sherman_morrison_scale(1.0, HUGE_VAL, 9.0, -1.0, 0, nullptr, nullptr) == 0.0);
}

}  // namespace
