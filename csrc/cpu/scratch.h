// Room for the sums of one call.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <new>
#include <vector>

#include "torch/checks.h"

namespace deq {

// Zeros of these sizes. Raises where there is no room for them.
inline std::vector<double> new_scratch(std::initializer_list<int64_t> sizes) {
  std::vector<double> scratch;
  int64_t size = 1;
  bool fits = true;
  for (int64_t factor : sizes) {
    fits = fits && !__builtin_mul_overflow(size, factor, &size);
  }
  fits = fits && static_cast<size_t>(size) <= scratch.max_size();
  try {
    scratch.resize(fits ? static_cast<size_t>(size) : 0);
  } catch (const std::bad_alloc&) {
    fits = false;
  }
  STD_TORCH_CHECK(fits, "there is no room for the sums of this call; pass fewer rows or columns");
  return scratch;
}

}  // namespace deq
