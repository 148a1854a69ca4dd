// The products of differences. Compiled for AVX512_BF16 alone, with DEQ_ISA naming the namespace.
#include "cpu/cells_differences.h"

#include <immintrin.h>

#include "cpu/simd.h"

namespace deq {
namespace DEQ_ISA {
namespace {

constexpr int64_t kVectorColumns = kLanes<float>;
constexpr int64_t kMostVectors = kDifferenceColumns / kVectorColumns;
// Sums that are kept in registers, of 32.
constexpr int kRegisterSums = 24;

template <int vectors>
constexpr int kRegisterRows = kRegisterSums / vectors < 12 ? kRegisterSums / vectors : 12;

bfloat16 to_bfloat16(float value) {
  Vector<float> filled = {};
  filled[0] = value;
  bfloat16 rounded[kVectorColumns];
  store(filled, rounded);
  return rounded[0];
}

void pack(const float* weight, int64_t dim, int64_t stride, BFloat16Pair* packed) {
  const int64_t pairs = difference_pairs(dim);
  for (int64_t begin = 0; begin < stride; begin += kDifferenceColumns) {
    const int64_t left = stride - begin;
    const int64_t width = left < kDifferenceColumns ? left : kDifferenceColumns;
    const float* from = weight + begin * dim;
    BFloat16Pair* to = packed + begin * pairs;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const int64_t k = 2 * pair;
      for (int64_t column = 0; column < width; ++column) {
        const float second = k + 1 < dim ? from[(k + 1) * width + column] : 0.0f;
        to[pair * width + column] = {to_bfloat16(from[k * width + column]), to_bfloat16(second)};
      }
    }
  }
}

inline __m512bh pairs_of(__m512i bits) {
  __m512bh pairs;
  __builtin_memcpy(&pairs, &bits, sizeof(pairs));
  return pairs;
}

template <int rows, int vectors>
void multiply_block(const BFloat16Pair* packed, int64_t pairs, int64_t stride, const bfloat16* in,
                    float* product) {
  __m512 sums[rows][vectors] = {};
  for (int64_t pair = 0; pair < pairs; ++pair) {
    __m512bh weights[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      weights[v] = pairs_of(_mm512_loadu_si512(packed + (pair * vectors + v) * kVectorColumns));
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      int32_t bits;
      __builtin_memcpy(&bits, in + r * stride + 2 * pair, sizeof(bits));
      const __m512bh factors = pairs_of(_mm512_set1_epi32(bits));
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], factors, weights[v]);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      _mm512_storeu_ps(product + r * stride + v * kVectorColumns, sums[r][v]);
    }
  }
}

// `rows` is at most `most`.
template <int most, int vectors>
void multiply_rest(const BFloat16Pair* packed, int64_t pairs, int64_t stride, int64_t rows,
                   const bfloat16* in, float* product) {
  if constexpr (most > 0) {
    if (rows == most) {
      multiply_block<most, vectors>(packed, pairs, stride, in, product);
    } else {
      multiply_rest<most - 1, vectors>(packed, pairs, stride, rows, in, product);
    }
  }
}

template <int vectors>
void multiply_columns(const BFloat16Pair* packed, int64_t pairs, int64_t stride, int64_t rows,
                      const bfloat16* in, float* product) {
  constexpr int together = kRegisterRows<vectors>;
  int64_t row = 0;
  for (; row + together <= rows; row += together) {
    multiply_block<together, vectors>(packed, pairs, stride, in + row * stride,
                                      product + row * stride);
  }
  multiply_rest<together - 1, vectors>(packed, pairs, stride, rows - row, in + row * stride,
                                       product + row * stride);
}

void multiply(const BFloat16Pair* packed, int64_t dim, int64_t stride, int64_t rows,
              const bfloat16* in, float* product) {
  const int64_t pairs = difference_pairs(dim);
  int64_t i = 0;
  for (; i + kDifferenceColumns <= stride; i += kDifferenceColumns) {
    multiply_columns<kMostVectors>(packed + i * pairs, pairs, stride, rows, in, product + i);
  }
  packed += i * pairs;
  switch ((stride - i) / kVectorColumns) {
    case 3:
      return multiply_columns<3>(packed, pairs, stride, rows, in, product + i);
    case 2:
      return multiply_columns<2>(packed, pairs, stride, rows, in, product + i);
    case 1:
      return multiply_columns<1>(packed, pairs, stride, rows, in, product + i);
    default:
      return;
  }
}

// Elements 0, 2, 4, ... and 1, 3, 5, ... of twice as many as a vector has lanes.
struct Halves {
  Vector<float> even;
  Vector<float> odd;
};

using Bits = VectorOf<uint32_t, DEQ_VECTOR_BYTES>::type;

inline Halves load_halves(const bfloat16* from) {
  const Bits bits = load_bits<Bits>(from);
  const Bits even = bits << 16;
  const Bits odd = bits & 0xffff0000u;
  return {load_bits<Vector<float>>(&even), load_bits<Vector<float>>(&odd)};
}

// Rounded, each in the low bits of a lane.
inline Bits round_bits(Vector<float> value) {
  using Narrow = VectorOf<uint16_t, DEQ_VECTOR_BYTES / 2>::type;
  const __m256bh rounded = _mm512_cvtneps_pbh(value);
  return __builtin_convertvector(load_bits<Narrow>(&rounded), Bits);
}

inline void store_halves(const Halves& halves, bfloat16* to) {
  const Bits bits = round_bits(halves.even) | round_bits(halves.odd) << 16;
  __builtin_memcpy(to, &bits, sizeof(bits));
}

template <int vectors>
inline void gather_columns(int64_t begin, int64_t end, const int64_t* col, const float* values,
                           int64_t first, const bfloat16* y, int64_t stride, bfloat16* out) {
  Halves sums[vectors] = {};
  for (int64_t e = begin; e < end; ++e) {
    const bfloat16* row = y + (col[e] - first) * stride;
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const Halves halves = load_halves(row + v * 2 * kVectorColumns);
      sums[v].even += values[e] * halves.even;
      sums[v].odd += values[e] * halves.odd;
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    store_halves(sums[v], out + v * 2 * kVectorColumns);
  }
}

void gather(const int64_t* crow, const int64_t* col, const float* values, int64_t first,
            const bfloat16* y, int64_t stride, int64_t rows, bfloat16* out) {
  constexpr int64_t columns = 2 * kVectorColumns;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t begin = crow[row];
    const int64_t end = crow[row + 1];
    bfloat16* out_row = out + row * stride;
    int64_t i = 0;
    for (; i + 4 * columns <= stride; i += 4 * columns) {
      gather_columns<4>(begin, end, col, values, first, y + i, stride, out_row + i);
    }
    for (; i + columns <= stride; i += columns) {
      gather_columns<1>(begin, end, col, values, first, y + i, stride, out_row + i);
    }
    if (i < stride) {
      Vector<float> sum = {};
      for (int64_t e = begin; e < end; ++e) {
        sum += values[e] * load(y + (col[e] - first) * stride + i, float());
      }
      store(sum, out_row + i);
    }
  }
}

void extrapolate(const float* g, const float* last_g, float secant, int64_t size, const float* c,
                 const float* z, float* out, bfloat16* change) {
  for (int64_t i = 0; i < size; i += kVectorColumns) {
    const Vector<float> from = load(g + i, float());
    const Vector<float> next = from - secant * (from - load(last_g + i, float()));
    const Vector<float> moved = next - load(z + i, float());
    store(next, out + i);
    store(c == nullptr ? moved : load(c + i, float()) * moved, change + i);
  }
}

}  // namespace

const CellDifferences& cell_differences() {
  static constexpr CellDifferences loops = {pack, gather, multiply, extrapolate};
  return loops;
}

}  // namespace DEQ_ISA
}  // namespace deq
