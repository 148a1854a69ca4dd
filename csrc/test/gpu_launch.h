// Launches a two-pass op on the block emulator, in the regime of its plan.
#pragma once

#include <vector>

#include "cuda/two_pass.h"
#include "test/emulator.h"

namespace deq_test {

template <typename Op>
void launch(const Op& op, const deq::GpuDemand& demand, const deq::GpuPlan& plan, Order order) {
  using Block = Emulator::Block;
  Emulator emulator(order);
  if (plan.regime != deq::GpuRegime::kGrid) {
    emulator.run(demand.problems, static_cast<int>(plan.cluster), plan.shared.bytes,
                 [&](const Block& block) {
                   deq::fused_pass(block, op, plan.shared, plan.tiles, plan.own_tiles,
                                   plan.kept_rows);
                 });
    return;
  }
  std::vector<double> memory(
      static_cast<size_t>(demand.problems * deq::GridScratch::size(demand.sums, plan.tiles)),
      std::nan(""));
  const deq::GridScratch scratch = {memory.data(), demand.sums, plan.tiles};
  const int64_t blocks = demand.problems * plan.tiles;
  emulator.run(blocks, 1, plan.shared.bytes,
               [&](const Block& block) { deq::measure_pass(block, op, scratch); });
  emulator.run(demand.problems, 1, plan.shared.bytes, [&](const Block& block) {
    deq::conclude_pass(block, op, scratch, plan.shared, plan.table_staged);
  });
  emulator.run(blocks, 1, plan.shared.bytes,
               [&](const Block& block) { deq::apply_pass(block, op, scratch); });
}

template <typename Op>
void launch_tiles(const Op& op, int64_t problems, Order order) {
  const int64_t tiles = deq::gpu_tiles(op.dim);
  Emulator(order).run(problems * tiles, 1, 0,
                      [&](const Emulator::Block& block) { deq::tile_pass(block, op, tiles); });
}

}  // namespace deq_test
