// The norms of one sample that the stopping rule judges by, from its sums: by the warp that
// concludes the sample. The CPU's counterpart: csrc/cpu/norms.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "algebra/norms.h"
#include "cuda/tile.h"

namespace deq {

// ||x||^2 of the x_i = item(i), i < dim, which all lanes of the warp receive.
template <typename Block, typename Item>
DEQ_DEVICE SquaredNorm measure_with_unit(const Block& block, int64_t dim, const Item& item) {
  double largest = 0.0;
  for (int64_t i = block.lane(); i < dim; i += kGpuWarp) {
    largest = std::fmax(largest, std::fabs(item(i)));
  }
  for (int mask = kGpuWarp / 2; mask > 0; mask /= 2) {
    largest = std::fmax(largest, block.shuffle_xor(largest, mask));
  }
  const double unit = unit_of(largest);
  double sums[1] = {};
  for (int64_t i = block.lane(); i < dim; i += kGpuWarp) {
    const double x = item(i) / unit;
    sums[0] += x * x;
  }
  return {sum_over_warp(block, sums), unit};
}

// Of f and z [dim], whose sums of squares are ||f - z||^2 and ||f||^2.
template <typename Block, typename state_t>
DEQ_DEVICE StepNorms step_norms(const Block& block, const double* sums, const state_t* f,
                                const state_t* z, int64_t dim) {
  StepNorms norms = {{sums[0]}, {sums[1]}};
  if constexpr (std::is_same_v<state_t, double>) {
    if (leaves_range(sums[0])) {
      norms.residual = measure_with_unit(block, dim, [&](int64_t i) { return f[i] - z[i]; });
    }
    if (leaves_range(sums[1])) {
      norms.f = measure_with_unit(block, dim, [&](int64_t i) { return f[i]; });
    }
  }
  return norms;
}

}  // namespace deq
