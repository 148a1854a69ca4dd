// How a streaming pass over [batch, dim] states is cut and spread over threads: a pure function.
#pragma once

#include <cstdint>

namespace deq {

// Every sum over the dimension is taken tile by tile and the tiles are added in order, whoever
// computed them: this is what makes results independent of the number of threads. A shorter tile
// interrupts the streams from memory more often, a longer one no longer fits the nearest caches.
constexpr int64_t kTile = 4096;

// Below this many elements a pass costs less than waking a second thread.
constexpr int64_t kSerialElements = 1 << 15;

// What the samples in flight may hold for the second pass to find it in a shared cache.
constexpr int64_t kCacheBytes = 12 << 20;

enum class Regime {
  kSerial,   // one thread does everything
  kSamples,  // threads take whole samples, both passes
  kTiles,    // all threads share one sample's tiles, then the next sample's
};

inline const char* regime_name(Regime regime) {
  switch (regime) {
    case Regime::kSerial:
      return "serial";
    case Regime::kSamples:
      return "samples";
    default:
      return "tiles";
  }
}

inline int64_t tile_count(int64_t dim) { return dim / kTile + (dim % kTile != 0 ? 1 : 0); }

struct StreamPlan {
  Regime regime;
  int64_t tile;         // elements
  int64_t tiles;        // per sample
  int64_t bytes_moved;  // the floor per sample: `rank` rows twice, f(z) and z twice, p and z once
};

inline StreamPlan plan_stream(int64_t batch, int64_t dim, int64_t rank, int64_t state_bytes,
                              int64_t history_bytes, int64_t threads) {
  const int64_t tiles = tile_count(dim);
  if (batch == 0) {  // whose `dim` no memory bounds
    return {Regime::kSerial, kTile, tiles, 0};
  }
  const int64_t sample_elements = dim * (2 * rank + 6);
  const int64_t sample_bytes = dim * (2 * rank * history_bytes + 6 * state_bytes);
  Regime regime = Regime::kTiles;
  if (threads <= 1 || batch * tiles <= 1 || batch * sample_elements <= kSerialElements) {
    regime = Regime::kSerial;
  } else if (batch >= threads && (batch % threads == 0 || batch >= 4 * threads) &&
             threads * dim * (rank * history_bytes + 2 * state_bytes) <= kCacheBytes) {
    regime = Regime::kSamples;
  } else if (tiles == 1) {
    regime = Regime::kSamples;
  }
  return {regime, kTile, tiles, batch * sample_bytes};
}

}  // namespace deq
