// What the planner of structured cells chooses, and that what it chooses fits.
#include "cuda/cells/plan.h"

#include "test/gpu_arrays.h"

namespace {

using deq::CellPlan;
using deq::GpuDevice;
using deq::GpuRegime;

const GpuDevice kH200 = {132, 232448, 16};
const GpuDevice kA100 = {108, 166912, 1};
const GpuDevice kConsumer = {170, 101376, 8};

CellPlan graph_plan(int64_t samples, int64_t rows_each, int64_t dim, const GpuDevice& device,
                    const char* forced = "") {
  return deq::plan_cells({samples * rows_each, dim, samples, true, false, 4, 4}, device, forced);
}

CellPlan row_plan(int64_t rows, int64_t dim, const GpuDevice& device, int64_t bytes = 4) {
  return deq::plan_cells({rows, dim, rows, false, false, bytes, bytes == 8 ? 8 : 4}, device);
}

TEST(gpu_cell_plan_takes_a_block_for_each_small_graph) {
  for (const GpuDevice& device : {kH200, kA100, kConsumer}) {
    for (const auto& [samples, rows, dim] :
         {std::tuple{128, 40, 64}, std::tuple{40, 10, 16}, std::tuple{5000, 30, 100}}) {
      const CellPlan plan = graph_plan(samples, rows, dim, device);
      CHECK(plan.regime == GpuRegime::kBlock);
      CHECK(plan.blocks == samples);
      CHECK(plan.resident || device.shared_bytes < kA100.shared_bytes);
      CHECK(plan.kept_rows >= rows);
    }
  }
}

TEST(gpu_cell_plan_shares_a_graph_among_idle_multiprocessors) {
  CHECK(graph_plan(8, 256, 64, kH200).regime == GpuRegime::kCluster);
  CHECK(graph_plan(8, 256, 64, kH200).cluster == 16);
  CHECK(graph_plan(40, 256, 64, kH200).cluster == 2);
  CHECK(graph_plan(200, 256, 64, kH200).regime == GpuRegime::kBlock);
  for (const GpuDevice& device : {kH200, kA100}) {
    const CellPlan plan = graph_plan(1, 2000, 256, device);
    CHECK(plan.regime == GpuRegime::kGrid);
    CHECK(plan.blocks <= device.multiprocessors);
    CHECK(2 * plan.blocks > device.multiprocessors);
    CHECK(plan.pass_rows == deq::kCellTile);
  }
  CHECK(graph_plan(4, 400, 64, kA100).regime == GpuRegime::kGrid);
}

// The sizes are not known where plans are made.
TEST(gpu_cell_plan_goes_by_the_mean_size) {
  const CellPlan many = deq::plan_cells({127 * 40 + 5000, 64, 128, true, true, 4, 4}, kH200);
  CHECK(many.regime == GpuRegime::kBlock);
  CHECK(many.kept_rows >= 40);
  CHECK(many.row_scratch > 0);  // for the large one
  CHECK(deq::plan_cells({7 * 40 + 5000, 64, 8, true, true, 4, 4}, kH200).cluster == 16);
}

TEST(gpu_cell_plan_spreads_rows_over_all_multiprocessors) {
  CHECK(row_plan(100000, 64, kH200).pass_rows == 64);
  CHECK(row_plan(1000, 64, kH200).pass_rows == 4);
  CHECK(row_plan(1000, 64, kH200).blocks == 250);
  CHECK(row_plan(2200, 64, kH200).pass_rows == 16);
  // A weight that has no room on chip is read by as many rows at once as possible.
  CHECK(!row_plan(64, 1000, kH200).resident);
  CHECK(row_plan(64, 1000, kH200).pass_rows == 16);
}

TEST(gpu_cell_plan_is_forced_only_where_that_is_possible) {
  for (const char* regime : deq_test::kRegimes) {
    CHECK(std::strcmp(deq::regime_name(graph_plan(9, 40, 64, kH200, regime).regime), regime) == 0);
  }
  CHECK(graph_plan(9, 40, 64, kA100, "cluster").regime == GpuRegime::kBlock);
  CHECK(graph_plan(9, 40, 64, kH200, "cluster").cluster == 2);
}

TEST(gpu_cell_plan_always_fits_and_covers_every_row) {
  for (const GpuDevice& device : {kH200, kA100, kConsumer}) {
    for (const int64_t samples : {1, 7, 300, 100000}) {
      for (const int64_t rows_each : {0, 1, 30, 700}) {
        for (const int64_t dim : {0, 1, 3, 64, 100, 129, 256, 700, 5000}) {
          for (const int64_t bytes : {2, 4, 8}) {
            for (const char* forced : {"", "block", "cluster", "grid"}) {
              const int64_t accum = bytes == 8 ? 8 : 4;
              const bool accelerate = samples == 7;
              const deq::CellDemand groups = {samples * rows_each, dim,   samples, true,
                                              accelerate,          bytes, accum};
              const CellPlan plan = deq::plan_cells(groups, device, forced);
              CHECK(plan.shared.bytes <= device.shared_bytes);
              CHECK(plan.pass_rows % deq::kCellTile == 0);
              CHECK(plan.blocks >= plan.cluster && plan.blocks % plan.cluster == 0);
              CHECK((plan.regime == GpuRegime::kCluster) == (plan.cluster > 1));
              CHECK(plan.cluster <= device.max_cluster);
              CHECK(plan.row_scratch > 0 || plan.kept_rows >= groups.rows || dim == 0);
              const deq::CellDemand rows = {samples, dim, samples, false, accelerate, bytes, accum};
              const CellPlan tiles = deq::plan_cells(rows, device, forced);
              CHECK(tiles.shared.bytes <= device.shared_bytes);
              CHECK(tiles.blocks * tiles.pass_rows >= samples);
              CHECK(tiles.kept_rows == tiles.pass_rows || tiles.row_scratch > 0);
              for (const CellPlan& each : {plan, tiles}) {
                // Every thread has its place, and every column of a pass its thread.
                CHECK(each.column_groups * each.pass_rows == deq::kGpuThreads * deq::kCellItem);
                CHECK(!each.resident || each.tile_k >= dim);
                CHECK(each.tile_k % deq::kCellItem == 0);
                CHECK(each.resident || deq::kChainTerms % each.tile_k == 0);
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace
