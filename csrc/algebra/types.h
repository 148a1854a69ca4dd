// Storage types and the type that sums over them are taken in.
#pragma once

#include <cstdint>

namespace deq {

struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

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
