// Who executes the rank-sized algebra: one thread on the CPU, the lanes of a warp on a GPU.
//
// A function over lanes is called by all of them. It spreads independent work by for_each_lane,
// leaves single writes to lanes.first(), and calls lanes.sync() before memory that one lane wrote
// is read by another.
#pragma once

#include <cstdint>

#include "algebra/macros.h"

namespace deq {

struct OneLane {
  DEQ_HOST_DEVICE int64_t index() const { return 0; }
  DEQ_HOST_DEVICE int64_t count() const { return 1; }
  DEQ_HOST_DEVICE bool first() const { return true; }
  DEQ_HOST_DEVICE void sync() const {}
};

template <typename Lanes, typename Body>
DEQ_HOST_DEVICE inline void for_each_lane(const Lanes& lanes, int64_t begin, int64_t end,
                                          const Body& body) {
  for (int64_t i = begin + lanes.index(); i < end; i += lanes.count()) {
    body(i);
  }
}

}  // namespace deq
