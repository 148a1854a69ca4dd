// What the GPU planner chooses, and that what it chooses fits.
#include "cuda/plan.h"

#include "cuda/copy_groups.h"
#include "test/check.h"
#include "test/gpu_arrays.h"

namespace {

using deq::GpuPlan;
using deq::GpuRegime;

const deq::GpuDevice kH200 = {132, 232448, 16};
const deq::GpuDevice kA100 = {108, 166912, 1};

GpuPlan step_plan(int64_t batch, int64_t dim, int64_t capacity, const deq::GpuDevice& device,
                  int64_t history_bytes = 4, const char* forced = "") {
  return deq::plan_gpu(deq::broyden_step_demand(batch, dim, capacity, history_bytes), device,
                       forced);
}

TEST(gpu_plan_takes_one_block_for_a_small_sample) {
  for (const deq::GpuDevice& device : {kH200, kA100}) {
    const GpuPlan plan = step_plan(32, 1000, 21, device);
    CHECK(plan.regime == GpuRegime::kBlock);
    CHECK(plan.launches == 1);
    CHECK(plan.kept_rows == 21);
  }
}

TEST(gpu_plan_takes_a_cluster_where_it_keeps_the_history_on_chip) {
  const GpuPlan plan = step_plan(32, 20000, 19, kH200);
  CHECK(plan.regime == GpuRegime::kCluster);
  CHECK(plan.kept_rows == 19);
  CHECK(plan.cluster == 16);
  CHECK(step_plan(32, 20000, 19, kA100).regime == GpuRegime::kGrid);
  // With two bytes per element half the blocks do.
  CHECK(step_plan(32, 20000, 19, kH200, 2).cluster == 8);
}

TEST(gpu_plan_takes_the_largest_cluster_where_half_of_the_history_stays) {
  const GpuPlan plan = step_plan(32, 61440, 19, kH200);
  CHECK(plan.regime == GpuRegime::kCluster);
  CHECK(plan.cluster == 16);
  CHECK(2 * plan.kept_rows >= 19);
  CHECK(plan.kept_rows % 4 == 0);
}

TEST(gpu_plan_takes_a_grid_for_a_large_sample) {
  for (const int64_t dim : {188160, 1000000, 10000000}) {
    const GpuPlan plan = step_plan(32, dim, 27, kH200);
    CHECK(plan.regime == GpuRegime::kGrid);
    CHECK(plan.launches == 3);
    CHECK(plan.table_staged);
  }
}

TEST(gpu_plan_spreads_a_lone_sample_over_idle_multiprocessors) {
  const GpuPlan many = step_plan(500, 8000, 10, kH200);
  const GpuPlan one = step_plan(1, 8000, 10, kH200);
  CHECK(one.cluster > many.cluster);
  CHECK(one.cluster * one.own_tiles >= one.tiles);
}

TEST(gpu_plan_always_fits_and_covers_every_tile) {
  for (const deq::GpuDevice& device : {kH200, kA100, deq::GpuDevice{170, 101376, 8}}) {
    for (const int64_t batch : {1, 7, 300}) {
      for (const int64_t dim : {0, 1, 2048, 2049, 30000, 61440, 110000, 3000000}) {
        for (const int64_t capacity : {1, 2, 19, 51, 200, 700}) {
          for (const int64_t bytes : {2, 4, 8}) {
            for (const char* forced : {"", "block", "cluster", "grid"}) {
              const GpuPlan plan = step_plan(batch, dim, capacity, device, bytes, forced);
              CHECK(plan.shared.bytes <= device.shared_bytes);
              CHECK(plan.cluster <= device.max_cluster);
              CHECK(plan.kept_rows <= capacity);
              CHECK(plan.kept_rows == capacity || plan.kept_rows % deq::rows_per_group(bytes) == 0);
              CHECK(plan.regime == GpuRegime::kGrid || plan.own_tiles * plan.cluster >= plan.tiles);
              CHECK((plan.regime == GpuRegime::kCluster) == (plan.cluster > 1));
              // So that each tile of rows is waited for by itself.
              CHECK(plan.kept_rows == 0 || plan.own_tiles - 1 <= deq::kMostPending);
            }
          }
        }
      }
    }
  }
}

TEST(gpu_plan_without_rows_streams) {
  const deq::GpuDemand small = {200, 4096, 0, 4, 2, 0};
  CHECK(deq::plan_gpu(small, kH200).regime == GpuRegime::kBlock);
  const deq::GpuDemand medium = {64, 61440, 0, 4, 2, 0};
  CHECK(deq::plan_gpu(medium, kH200).regime == GpuRegime::kCluster);
  const deq::GpuDemand large = {64, 10000000, 0, 4, 2, 0};
  CHECK(deq::plan_gpu(large, kH200).regime == GpuRegime::kGrid);
}

TEST(gpu_plan_of_an_anderson_step_keeps_no_rows) {
  const deq::GpuDemand demand = deq::anderson_step_demand(200, 4096, 5, 4);
  CHECK(deq::plan_gpu(demand, kH200).regime == GpuRegime::kBlock);
  CHECK(deq::plan_gpu(demand, kH200).kept_rows == 0);
  // Its sums and its table are room enough that a window of 301 changes finds no block.
  const deq::GpuDemand large = deq::anderson_step_demand(64, 4096, 301, 4);
  CHECK(deq::plan_gpu(large, kH200, "block").regime == GpuRegime::kGrid);
  CHECK(!deq::plan_gpu(large, kH200).table_staged);
}

TEST(gpu_plan_is_forced_only_where_that_is_possible) {
  CHECK(step_plan(4, 1000, 5, kH200, 4, "grid").regime == GpuRegime::kGrid);
  CHECK(step_plan(4, 5000, 5, kH200, 4, "cluster").regime == GpuRegime::kCluster);
  CHECK(step_plan(4, 5000, 5, kA100, 4, "cluster").regime == GpuRegime::kGrid);
  CHECK(step_plan(4, 5000, 700, kH200, 4, "block").regime == GpuRegime::kGrid);
}

}  // namespace
