// The step from an evaluated iterate of a structured cell: for the files that are compiled once per
// instruction set, in whose namespace it lies.
#pragma once

#include <cstdint>

#include "cpu/cells/tiles.h"
#include "cpu/simd.h"

namespace deq {
namespace DEQ_ISA {
namespace {

// What the next evaluation mixes goes to `mixed`, unless that is null: c next_z, or, where mixed_t
// is the shorter type, c next_moved.
template <typename accum_t, typename small_t, typename mixed_t>
void advance(const CellStep<accum_t, small_t>& step, mixed_t* mixed) {
  // A copy, which no store of this function can change.
  const CellStep<accum_t, small_t> a = step;
  for (int64_t i = 0; i < a.size; i += kLanes<accum_t>) {
    const Vector<accum_t> z = load(a.z + i, accum_t());
    const Vector<accum_t> combined = load(a.combined + i, accum_t());
    const Vector<accum_t> gap = load(a.gap + i, accum_t());
    const Vector<accum_t> residual = combined - gap;
    Vector<accum_t> moved = a.length * residual;
    Vector<accum_t> next_combined = residual + a.share * gap;
    if (a.momentum != accum_t(0)) {
      moved -= a.momentum * load(a.moved + i, accum_t());
      next_combined += a.momentum * load(a.drift + i, accum_t());
    }
    store(combined - next_combined, a.next_drift + i);
    store(next_combined, a.next_combined + i);
    store(moved, a.next_moved + i);
    moved = load(a.next_moved + i, accum_t());  // as it was rounded
    const Vector<accum_t> next = z + moved;
    store(next, a.next_z + i);
    if (mixed != nullptr) {
      constexpr bool whole = sizeof(mixed_t) == sizeof(accum_t);
      store(load(a.scale + i, accum_t()) * (whole ? next : moved), mixed + i);
    }
  }
}

}  // namespace
}  // namespace DEQ_ISA
}  // namespace deq
