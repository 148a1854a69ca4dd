// Storage types, their rounding, and the type that sums over them are taken in.
#pragma once

#include <cstdint>

namespace deq {

struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

// The distance from 1 to the next larger number of a type.
constexpr double roundoff(double) { return 0x1p-52; }
constexpr double roundoff(float) { return 0x1p-23; }
constexpr double roundoff(float16) { return 0x1p-10; }
constexpr double roundoff(bfloat16) { return 0x1p-7; }

template <typename storage_t>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename storage_t>
using accumulate_t = typename Accumulate<storage_t>::type;

}  // namespace deq
