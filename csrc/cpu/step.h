// Both passes of a solver's step over the samples that run.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <vector>

#include "algebra/termination.h"
#include "cpu/streaming.h"

namespace deq {

// `step` has measure(sample, tile), conclude(sample) -> decision and apply(sample, tile, decision).
// `most` is the largest number of history rows that a sample reads.
template <typename state_t, typename history_t, typename Step>
void run_step(const Step& step, const std::vector<int64_t>& running, int64_t dim, int64_t most,
              const int64_t* counters) {
  const StreamPlan plan =
      plan_stream(static_cast<int64_t>(running.size()), dim, most, sizeof(state_t),
                  sizeof(history_t), torch::stable::get_num_threads());
  const bool backwards =
      !running.empty() && counters[running[0] * kCounterColumns + kSteps] % 2 == 1;
  two_passes(
      plan, running, backwards, [&](int64_t sample, int64_t tile) { step.measure(sample, tile); },
      [&](int64_t sample) { return step.conclude(sample); },
      [&](int64_t sample, int64_t tile, const auto& decision) {
        step.apply(sample, tile, decision);
      });
}

}  // namespace deq
