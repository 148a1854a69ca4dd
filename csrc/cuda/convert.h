// Storage types to the type sums are taken in, and back, rounded to nearest with ties to even.
#pragma once

#include <cstdint>
#include <cstring>

#include "algebra/macros.h"
#include "algebra/types.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace deq {

DEQ_DEVICE double widen(double x) { return x; }
DEQ_DEVICE float widen(float x) { return x; }

DEQ_DEVICE float widen(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

DEQ_DEVICE float widen(float16 x) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(x.bits));
#else
  _Float16 value;
  memcpy(&value, &x.bits, sizeof(value));
  return static_cast<float>(value);
#endif
}

DEQ_DEVICE void narrow(double x, double* out) { *out = x; }
DEQ_DEVICE void narrow(float x, float* out) { *out = x; }
DEQ_DEVICE void narrow(double x, float* out) { *out = static_cast<float>(x); }

DEQ_DEVICE void narrow(float x, bfloat16* out) {
#ifdef __CUDACC__
  out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  const uint32_t rounded = x != x ? 0x7fff0000u : bits + 0x7fffu + ((bits >> 16) & 1u);
  out->bits = static_cast<uint16_t>(rounded >> 16);
#endif
}

DEQ_DEVICE void narrow(double x, bfloat16* out) { narrow(static_cast<float>(x), out); }

DEQ_DEVICE void narrow(float x, float16* out) {
#ifdef __CUDACC__
  out->bits = __half_as_ushort(__float2half_rn(x));
#else
  const _Float16 value = static_cast<_Float16>(x);
  memcpy(&out->bits, &value, sizeof(out->bits));
#endif
}

DEQ_DEVICE void narrow(double x, float16* out) { narrow(static_cast<float>(x), out); }

}  // namespace deq
