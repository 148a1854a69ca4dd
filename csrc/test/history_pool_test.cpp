// What the pool keeps, and what it never holds on to.
#include "cpu/history_pool.h"

#include "test/check.h"

namespace {

constexpr int64_t kPage = deq::HistoryPool::kHugePage;

TEST(a_freed_buffer_serves_the_next_request) {
  deq::HistoryPool pool;
  void* const first = pool.take(3 * kPage - 5);
  CHECK(reinterpret_cast<uintptr_t>(first) % kPage == 0);
  pool.give_back(first);
  CHECK(pool.kept_bytes() == 3 * kPage);
  CHECK(pool.take(2 * kPage) == first);
  CHECK(pool.kept_bytes() == 0);
  pool.give_back(first);
  CHECK(pool.release() == 3 * kPage);
  CHECK(pool.kept_bytes() == 0);
}

TEST(a_buffer_far_too_large_is_not_wasted_on_a_small_request) {
  deq::HistoryPool pool;
  void* const large = pool.take(9 * kPage);
  pool.give_back(large);
  void* const small = pool.take(2 * kPage);
  pool.give_back(small);
  CHECK(pool.release() == 2 * kPage);
}

TEST(live_and_kept_never_exceed_the_peak_of_the_live) {
  deq::HistoryPool pool;
  void* const a = pool.take(4 * kPage);
  void* const b = pool.take(4 * kPage);
  pool.give_back(a);
  pool.give_back(b);
  CHECK(pool.kept_bytes() == 8 * kPage);
  // 9 pages do not fit either buffer: both must go, or 17 pages would be held at a peak of 9.
  void* const c = pool.take(9 * kPage);
  CHECK(pool.kept_bytes() == 0);
  pool.give_back(c);
  pool.release();
}

TEST(release_leaves_what_is_in_use) {
  deq::HistoryPool pool;
  void* const used = pool.take(kPage);
  CHECK(pool.release() == 0);
  static_cast<char*>(used)[kPage - 1] = 1;
  pool.give_back(used);
  CHECK(pool.release() == kPage);
}

TEST(a_failed_request_leaves_the_accounts_as_they_were) {
  deq::HistoryPool pool;
  void* const kept = pool.take(4 * kPage);
  pool.give_back(kept);
  for (const int64_t bytes : {int64_t(1) << 60, INT64_MAX}) {
    bool refused = false;
    try {
      pool.take(bytes);
    } catch (const std::bad_alloc&) {
      refused = true;
    }
    CHECK(refused);
  }
  // The peak is still 4 pages: what is larger than the kept buffer displaces it.
  void* const larger = pool.take(5 * kPage);
  CHECK(pool.kept_bytes() == 0);
  pool.give_back(larger);
  pool.release();
}

}  // namespace
