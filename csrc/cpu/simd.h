// Vectors of this file's instruction set, and loads and stores that convert to and from storage.
//
// Only files that are compiled per instruction set include this: tiles.cpp, cells/tiles.cpp and its
// cells/activation.h. Everything is inside namespace deq::DEQ_ISA, and nothing inline from
// elsewhere is used, so that no function compiled for a newer machine can be linked into the path
// of an older one.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include <cstdint>

#include "algebra/types.h"

#if defined(__AVX512F__)
#define DEQ_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define DEQ_VECTOR_BYTES 32
#else
#define DEQ_VECTOR_BYTES 16
#endif

namespace deq {
namespace DEQ_ISA {

template <typename element_t, int bytes>
struct VectorOf {
  typedef element_t type __attribute__((vector_size(bytes)));
};

template <typename accum_t>
using Vector = typename VectorOf<accum_t, DEQ_VECTOR_BYTES>::type;

template <typename accum_t>
constexpr int kLanes = DEQ_VECTOR_BYTES / static_cast<int>(sizeof(accum_t));

template <typename vector_t>
inline vector_t load_bits(const void* from) {
  vector_t to;
  __builtin_memcpy(&to, from, sizeof(to));
  return to;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) {  // infinity and NaN
    bits = 0x7f800000u | (magnitude << 13);
  } else {  // 2^112 moves the exponent's bias, subnormals included
    const uint32_t shifted = magnitude << 13;
    float value;
    __builtin_memcpy(&value, &shifted, sizeof(value));
    value *= 0x1p112f;
    __builtin_memcpy(&bits, &value, sizeof(bits));
  }
  bits |= sign;
  float result;
  __builtin_memcpy(&result, &bits, sizeof(result));
  return result;
}

inline uint16_t float_to_half(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) {
    return sign | 0x7e00u;
  }
  if (bits >= 0x477ff000u) {  // rounds to infinity
    return sign | 0x7c00u;
  }
  if (bits < 0x38800000u) {  // subnormal: adding 1/2 leaves the rounded value in the low bits
    float magnitude;
    __builtin_memcpy(&magnitude, &bits, sizeof(magnitude));
    magnitude += 0.5f;
    __builtin_memcpy(&bits, &magnitude, sizeof(bits));
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  bits += 0xfffu + ((bits >> 13) & 1u);  // to nearest, ties to even
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u) >> 13));
}

inline Vector<double> load(const double* p, double) { return load_bits<Vector<double>>(p); }
inline Vector<float> load(const float* p, float) { return load_bits<Vector<float>>(p); }

inline Vector<double> load(const float* p, double) {
  using Narrow = typename VectorOf<float, DEQ_VECTOR_BYTES / 2>::type;
  return __builtin_convertvector(load_bits<Narrow>(p), Vector<double>);
}

inline Vector<float> load(const bfloat16* p, float) {
  using Narrow = typename VectorOf<uint16_t, DEQ_VECTOR_BYTES / 2>::type;
  using Wide = typename VectorOf<uint32_t, DEQ_VECTOR_BYTES>::type;
  const Wide bits = __builtin_convertvector(load_bits<Narrow>(p), Wide) << 16;
  return load_bits<Vector<float>>(&bits);
}

inline Vector<double> load(const bfloat16* p, double) {
  Vector<double> out;
  for (int i = 0; i < kLanes<double>; ++i) {
    const uint32_t bits = static_cast<uint32_t>(p[i].bits) << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    out[i] = value;
  }
  return out;
}

inline Vector<float> load(const float16* p, float) {
#if defined(__AVX512F__)
  // The masked forms read no undefined register, which some compilers warn about.
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vector<float> out;
  for (int i = 0; i < kLanes<float>; ++i) {
    out[i] = half_to_float(p[i].bits);
  }
  return out;
#endif
}

inline Vector<double> load(const float16* p, double) {
  Vector<double> out;
  for (int i = 0; i < kLanes<double>; ++i) {
    out[i] = half_to_float(p[i].bits);
  }
  return out;
}

// To float, rounded to odd, so that a second rounding to a shorter type is as good as one.
inline float rounded_to_odd(double value) {
  float narrowed = static_cast<float>(value);
  uint32_t bits;
  __builtin_memcpy(&bits, &narrowed, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u || static_cast<double>(narrowed) == value) {
    return narrowed;
  }
  const bool too_far = (narrowed > value) == (narrowed > 0.0f);
  bits = (too_far && (bits & 0x7fffffffu) != 0) ? bits - 1u : bits;
  bits |= 1u;
  __builtin_memcpy(&narrowed, &bits, sizeof(narrowed));
  return narrowed;
}

inline void store(Vector<double> v, double* p) { __builtin_memcpy(p, &v, sizeof(v)); }
inline void store(Vector<float> v, float* p) { __builtin_memcpy(p, &v, sizeof(v)); }

inline void store(Vector<double> v, float* p) {
  using Narrow = typename VectorOf<float, DEQ_VECTOR_BYTES / 2>::type;
  const Narrow narrow = __builtin_convertvector(v, Narrow);
  __builtin_memcpy(p, &narrow, sizeof(narrow));
}

inline void store(Vector<float> v, bfloat16* p) {
#if defined(__AVX512BF16__)
  const __m256bh narrow = _mm512_cvtneps_pbh(v);
  __builtin_memcpy(p, &narrow, sizeof(narrow));
#else
  using Wide = typename VectorOf<uint32_t, DEQ_VECTOR_BYTES>::type;
  using Narrow = typename VectorOf<uint16_t, DEQ_VECTOR_BYTES / 2>::type;
  const Wide bits = load_bits<Wide>(&v);
  const Wide rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const Wide quiet = (bits >> 16) | 0x40u;                            // rounding could clear a NaN
  const Wide is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const Narrow narrow = __builtin_convertvector((is_nan & quiet) | (~is_nan & rounded), Narrow);
  __builtin_memcpy(p, &narrow, sizeof(narrow));
#endif
}

inline void store(Vector<double> v, bfloat16* p) {
  for (int i = 0; i < kLanes<double>; ++i) {
    const float value = rounded_to_odd(v[i]);
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    p[i].bits = static_cast<uint16_t>(value != value ? (bits >> 16) | 0x40u : rounded);
  }
}

inline void store(Vector<double> v, float16* p) {
  for (int i = 0; i < kLanes<double>; ++i) {
    p[i].bits = float_to_half(rounded_to_odd(v[i]));
  }
}

inline void store(Vector<float> v, float16* p) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(p),
      _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  for (int i = 0; i < kLanes<float>; ++i) {
    p[i].bits = float_to_half(v[i]);
  }
#endif
}

// The last n < kLanes elements of a row, the other lanes zero.
template <typename accum_t, typename storage_t>
inline Vector<accum_t> load_partial(const storage_t* p, int64_t n) {
  storage_t padded[kLanes<accum_t>] = {};
  __builtin_memcpy(padded, p, static_cast<unsigned long>(n) * sizeof(storage_t));
  return load(padded, accum_t());
}

template <typename storage_t, typename vector_t>
inline void store_partial(vector_t v, storage_t* p, int64_t n) {
  storage_t padded[sizeof(v) / sizeof(v[0])];
  store(v, padded);
  __builtin_memcpy(p, padded, static_cast<unsigned long>(n) * sizeof(storage_t));
}

// Calls body(offset, lanes) for each full vector and once more for a remainder.
template <typename accum_t, typename Body>
inline void for_each_vector(int64_t n, const Body& body) {
  constexpr int lanes = kLanes<accum_t>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    body(i, false);
  }
  if (i < n) {
    body(i, true);
  }
}

// Sums of all lanes in double, halves first: few operations, and always the same ones.
inline double sum_lanes(Vector<double> v) {
  double lanes[kLanes<double>];
  store(v, lanes);
  for (int half = kLanes<double> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      lanes[i] += lanes[i + half];
    }
  }
  return lanes[0];
}

inline double sum_lanes(Vector<float> v) {
  float lanes[kLanes<float>];
  store(v, lanes);
  return sum_lanes(load(lanes, double()) + load(lanes + kLanes<double>, double()));
}

}  // namespace DEQ_ISA
}  // namespace deq
