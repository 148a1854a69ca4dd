// Where what is kept of a row lies from step to step, and the step that is due.
#pragma once

#include <cstdint>

#include "algebra/crop.h"
#include "algebra/macros.h"
#include "algebra/multiply_add.h"

namespace deq {

// What is kept of every row: z, the best z, and what an evaluation leaves: the next z,
// z + damping r with r = f(z) - z, or r itself where steps are accelerated. These need the z before
// and the combined residuals o and o' of the two steps before as well.
enum CellSlot : int {
  kZ,
  kBest,
  kOutput,
  kCellSlots,
  kLastZ = kCellSlots,
  kCombined,
  kLastCombined,
  kAllCellSlots
};

// For all rows of one sample.
struct CellSlots {
  int8_t of[kAllCellSlots];  // where each of them lies
  int8_t before;             // where the z before kLastZ lies, while a combined step is due
  bool kept;                 // whether there is a best one
  bool combines;             // whether a combined step is due
  CellWeights weights;       // its weights

  DEQ_DEVICE void reset() {
    for (int slot = 0; slot < kAllCellSlots; ++slot) {
      of[slot] = static_cast<int8_t>(slot);
    }
    kept = false;
    combines = false;
  }

  // The z that was evaluated and o become those of the step before.
  DEQ_DEVICE void follow(const CellDecision& decision, bool accelerate) {
    combines = accelerate && decision.action == CellAction::kAdvance;
    kept = kept || decision.improved;
    if (!accelerate) {
      if (decision.improved) {
        swap(kZ, kBest);
      }
      if (decision.action != CellAction::kStop) {
        swap(kZ, kOutput);
      }
      return;
    }
    // An iterate can be the best one and still be needed as the one before.
    if (decision.improved) {
      of[kBest] = of[kZ];
    }
    if (decision.action == CellAction::kGoBack) {
      of[kZ] = of[kLastZ];
    }
    if (combines) {
      const int8_t next = free_iterate();
      before = of[kLastZ];
      of[kLastZ] = of[kZ];
      of[kZ] = next;
      swap(kCombined, kLastCombined);
      weights = decision.weights;
    }
  }

  // What a combined step makes of one element, which lies at `element` in the first slot. The next
  // z may take the place of the z before the last one, and the new o takes that of o'.
  template <typename accum_t>
  DEQ_DEVICE void combine(accum_t damping, int64_t slot_stride, accum_t* element) const {
    auto at = [&](int place) -> accum_t& { return element[place * slot_stride]; };
    const accum_t share = static_cast<accum_t>(weights.share);
    const accum_t momentum = static_cast<accum_t>(weights.momentum);
    const accum_t z = at(of[kLastZ]);
    const accum_t r = at(of[kOutput]);
    accum_t next = multiply_add(damping * (accum_t(1) - share), r, z);
    accum_t sum = r;
    // What has no weight may not be there yet, or be infinite.
    if (share != accum_t(0) || momentum != accum_t(0)) {
      const accum_t o = at(of[kLastCombined]);
      sum = multiply_add(share, o - r, sum);
      if (momentum != accum_t(0)) {
        sum = multiply_add(momentum, at(of[kCombined]) - o, sum);
        next = multiply_add(momentum, at(before) - z, next);
      }
    }
    at(of[kZ]) = next;
    at(of[kCombined]) = sum;
  }

 private:
  DEQ_DEVICE void swap(int i, int j) {
    const int8_t place = of[i];
    of[i] = of[j];
    of[j] = place;
  }

  // Of the three places of iterates, one that holds neither z nor the best one.
  DEQ_DEVICE int8_t free_iterate() const {
    auto is_taken = [&](int place) { return place == of[kZ] || place == of[kBest]; };
    return static_cast<int8_t>(!is_taken(kZ) ? kZ : !is_taken(kBest) ? kBest : kLastZ);
  }
};

}  // namespace deq
