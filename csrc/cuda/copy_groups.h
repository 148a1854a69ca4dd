// How long a thread waits for its asynchronous copies.
#pragma once

#include <cstdint>
#include <type_traits>

#include "algebra/macros.h"

namespace deq {

// The instruction takes the number of groups that may stay under way as a constant of six bits.
// More groups than this are waited for as if so many were to stay, which is longer than asked for.
constexpr int kMostPending = 63;

// Calls wait(std::integral_constant<int, n>) with the n that is `pending`, found by halving.
template <int low = 0, int high = kMostPending, typename Wait>
DEQ_DEVICE void wait_with_constant(int64_t pending, const Wait& wait) {
  if constexpr (low == high) {
    wait(std::integral_constant<int, low>());
  } else {
    constexpr int middle = (low + high + 1) / 2;
    if (pending >= middle) {
      wait_with_constant<middle, high>(pending, wait);
    } else {
      wait_with_constant<low, middle - 1>(pending, wait);
    }
  }
}

}  // namespace deq
