// Spreading tiles over threads, and the product that reads its rows twice.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/plan.h"
#include "cpu/tiles.h"

namespace deq {

template <typename accum_t>
struct TileBuffer {
  alignas(64) accum_t values[kTile];
};

struct TileRange {
  int64_t begin;
  int64_t size;
};

inline TileRange tile_range(int64_t tile, int64_t dim) {
  const int64_t begin = tile * kTile;
  return {begin, std::min(kTile, dim - begin)};
}

// Runs body(i) for i in [0, count); backwards on each thread if asked, so that a second pass
// begins with what the first one left in the cache.
template <typename Body>
void for_each(int64_t count, bool parallel, bool backwards, const Body& body) {
  auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      body(backwards ? begin + end - 1 - i : i);
    }
  };
  if (parallel && count > 1) {
    torch::stable::parallel_for(0, count, 1, run);
  } else {
    run(0, count);
  }
}

// A pass over every sample's tiles, a decision per sample, and a second pass over the same tiles.
// first(sample, tile); conclude(sample) -> decision, false where there is no second pass;
// second(sample, tile, decision). A solver passes `backwards` on every other step: it then begins
// with the samples whose history the step before has left in the cache.
template <typename First, typename Conclude, typename Second>
void two_passes(const StreamPlan& plan, const std::vector<int64_t>& samples, bool backwards,
                const First& first, const Conclude& conclude, const Second& second) {
  const bool split_tiles = plan.regime == Regime::kTiles;
  auto sample_passes = [&](int64_t i) {
    const int64_t sample = samples[static_cast<size_t>(i)];
    for_each(plan.tiles, split_tiles, false, [&](int64_t tile) { first(sample, tile); });
    const auto decision = conclude(sample);
    if (decision) {
      for_each(plan.tiles, split_tiles, true,
               [&](int64_t tile) { second(sample, tile, decision); });
    }
  };
  for_each(static_cast<int64_t>(samples.size()), plan.regime == Regime::kSamples, backwards,
           sample_passes);
}

// Adds the tiles' partial sums in order. partials [tiles, width]; out [width].
inline void add_tiles(const double* partials, int64_t tiles, int64_t width, double* out) {
  std::fill_n(out, width, 0.0);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const double* row = partials + tile * width;
    for (int64_t i = 0; i < width; ++i) {
      out[i] += row[i];
    }
  }
}

}  // namespace deq
