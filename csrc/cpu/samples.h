// Which samples of a batch still run.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "algebra/termination.h"
#include "torch/checks.h"

namespace deq {

inline bool is_running(const int64_t* counters, int64_t sample) {
  return counters[sample * kCounterColumns + kStatus] == kRunning;
}

// The list lives in the calling thread and is reused, so that a step allocates nothing.
inline const std::vector<int64_t>& running_samples(const int64_t* counters, int64_t batch) {
  static thread_local std::vector<int64_t> samples;
  samples.clear();
  for (int64_t sample = 0; sample < batch; ++sample) {
    if (is_running(counters, sample)) {
      samples.push_back(sample);
    }
  }
  return samples;
}

// A running sample writes its residual to the next column of the trace: there must be one.
// Returns the largest count.
inline int64_t check_counters(const std::vector<int64_t>& running, const int64_t* counters,
                              int64_t max_steps) {
  int64_t most = 0;
  for (int64_t sample : running) {
    const int64_t* counter = counters + sample * kCounterColumns;
    const int64_t bad = first_bad_counter(counter);
    STD_TORCH_CHECK(bad == kCounterColumns, "counters must be at least 0 and at most ",
                    kMostCounted, " where a sample runs, got ", counter[bad], " in column ", bad,
                    " of sample ", sample);
    STD_TORCH_CHECK(counter[kSteps] < max_steps, "sample ", sample, " still runs but has used all ",
                    max_steps, " steps of its trace");
    most = std::max(most, counter[kCount]);
  }
  return most;
}

inline double* sample_record(double* record, int64_t sample, int64_t max_steps) {
  return record + sample * (kNormColumns + max_steps);
}

inline int64_t count_running(const int64_t* counters, int64_t batch) {
  int64_t count = 0;
  for (int64_t sample = 0; sample < batch; ++sample) {
    count += is_running(counters, sample) ? 1 : 0;
  }
  return count;
}

}  // namespace deq
