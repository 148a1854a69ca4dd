// Stored vectors of every sample, as the ops address them.
#pragma once

#include <cstdint>

#include "algebra/macros.h"
#include "cuda/two_pass.h"

namespace deq {

// Rows [batch, capacity, dim].
template <typename history_t>
struct StoredRows {
  history_t* data;
  int64_t sample_stride;  // elements
  int64_t row_stride;
  bool aligned;  // every row begins on 16 bytes

  DEQ_DEVICE history_t* row(int64_t sample, int64_t j) const {
    return data + sample * sample_stride + j * row_stride;
  }
  DEQ_DEVICE Rows<history_t> tile_rows(int64_t sample, const Tile& tile) const {
    return {row(sample, 0) + tile.begin, row_stride, tile.size, aligned, {}};
  }
};

}  // namespace deq
