// Multiplications and additions that a GPU rounds once.
#pragma once

#include "algebra/macros.h"

namespace deq {

// a b + c. A compiler that contracts by itself may choose differently from kernel to kernel, and
// has a choice wherever two products are added; but whatever regime a sample is in, its bits are to
// be the same. So the CUDA library is compiled without contraction, and says here where it is
// meant.
template <typename T>
DEQ_HOST_DEVICE inline T multiply_add(T a, T b, T c) {
#ifdef __CUDA_ARCH__
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}

}  // namespace deq
