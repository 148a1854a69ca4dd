// The products of differences. Compiled for AVX512_BF16 alone, with DEQ_ISA naming the namespace.
#include "cpu/cells/differences.h"

#include <immintrin.h>

#include "cpu/cells/advance.h"
#include "cpu/cells/finish.h"
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

inline void store_halves(const Halves& halves, void* to) {
  const Bits bits = round_bits(halves.even) | round_bits(halves.odd) << 16;
  __builtin_memcpy(to, &bits, sizeof(bits));
}

void pack(const float* weight, int64_t dim, int64_t stride, BFloat16Pair* packed) {
  const int64_t pairs = difference_pairs(dim);
  for (int64_t begin = 0; begin < stride; begin += kDifferenceColumns) {
    const int64_t left = stride - begin;
    const int64_t width = left < kDifferenceColumns ? left : kDifferenceColumns;
    const float* from = weight + begin * dim;
    BFloat16Pair* to = packed + begin * pairs;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const float* first = from + 2 * pair * width;
      const bool is_pair = 2 * pair + 1 < dim;
      for (int64_t column = 0; column < width; column += kVectorColumns) {
        const float* second = first + width + column;
        store_halves(
            {load(first + column, float()), is_pair ? load(second, float()) : Vector<float>{}},
            to + pair * width + column);
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
                    float* product, const CellLines& ahead) {
  __m512 sums[rows][vectors] = {};
  for (int64_t pair = 0; pair < pairs; ++pair) {
    ahead.fetch(pair);
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
                   const bfloat16* in, float* product, const CellLines& ahead) {
  if constexpr (most > 0) {
    if (rows == most) {
      multiply_block<most, vectors>(packed, pairs, stride, in, product, ahead);
    } else {
      multiply_rest<most - 1, vectors>(packed, pairs, stride, rows, in, product, ahead);
    }
  }
}

template <int vectors>
void multiply_columns(const BFloat16Pair* packed, int64_t pairs, int64_t stride, int64_t rows,
                      const bfloat16* in, float* product, const CellAhead& ahead, int64_t part) {
  constexpr int together = kRegisterRows<vectors>;
  int64_t row = 0;
  for (; row + together <= rows; row += together) {
    multiply_block<together, vectors>(packed, pairs, stride, in + row * stride,
                                      product + row * stride, {ahead, part, row, together});
  }
  multiply_rest<together - 1, vectors>(packed, pairs, stride, rows - row, in + row * stride,
                                       product + row * stride, {ahead, part, row, rows - row});
}

void multiply(const BFloat16Pair* packed, int64_t dim, int64_t stride, int64_t rows,
              const bfloat16* in, float* product, const CellAhead& ahead) {
  const int64_t pairs = difference_pairs(dim);
  int64_t i = 0;
  int64_t part = 0;
  for (; i + kDifferenceColumns <= stride; i += kDifferenceColumns) {
    multiply_columns<kMostVectors>(packed + i * pairs, pairs, stride, rows, in, product + i, ahead,
                                   part++);
  }
  packed += i * pairs;
  switch ((stride - i) / kVectorColumns) {
    case 3:
      return multiply_columns<3>(packed, pairs, stride, rows, in, product + i, ahead, part);
    case 2:
      return multiply_columns<2>(packed, pairs, stride, rows, in, product + i, ahead, part);
    case 1:
      return multiply_columns<1>(packed, pairs, stride, rows, in, product + i, ahead, part);
    default:
      return;
  }
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

}  // namespace

const CellDifferences& cell_differences() {
  static constexpr CellDifferences loops = {pack,
                                            gather,
                                            multiply,
                                            finish<float, bfloat16>,
                                            advance<float, bfloat16, float>,
                                            advance<float, bfloat16, bfloat16>};
  return loops;
}

}  // namespace DEQ_ISA
}  // namespace deq
