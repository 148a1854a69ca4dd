// The launch planner is a pure function of the sizes.
#include "cpu/plan.h"

#include "test/check.h"

namespace {

TEST(tiles_cover_the_dimension) {
  CHECK(deq::tile_count(0) == 0);
  CHECK(deq::tile_count(1) == 1);
  CHECK(deq::tile_count(deq::kTile) == 1);
  CHECK(deq::tile_count(deq::kTile + 1) == 2);
}

TEST(regimes) {
  using deq::Regime;
  auto regime = [](int64_t batch, int64_t dim, int64_t rank, int64_t threads) {
    return deq::plan_stream(batch, dim, rank, 4, 4, threads).regime;
  };
  CHECK(regime(1, 64, 10, 8) == Regime::kSerial);
  CHECK(regime(64, 100000, 10, 1) == Regime::kSerial);
  CHECK(regime(32, 1000, 10, 2) == Regime::kSamples);
  CHECK(regime(1, 50000, 10, 2) == Regime::kTiles);
  CHECK(regime(3, 100000, 10, 2) == Regime::kTiles);
}

TEST(bytes_are_the_floor) {
  CHECK(deq::plan_stream(3, 1000, 5, 4, 4, 2).bytes_moved == 3 * 1000 * (2 * 5 + 6) * 4);
  CHECK(deq::plan_stream(3, 1000, 5, 4, 2, 2).bytes_moved == 3 * 1000 * (2 * 5 * 2 + 6 * 4));
}

TEST(no_dimension_overflows_where_there_is_no_sample) {
  const deq::StreamPlan plan = deq::plan_stream(0, INT64_MAX, 9, 4, 4, 2);
  CHECK(plan.regime == deq::Regime::kSerial);
  CHECK(plan.bytes_moved == 0);
  CHECK(plan.tiles == INT64_MAX / deq::kTile + 1);
}

}  // namespace
