// The inner loops of structured cells. Compiled once per instruction set with DEQ_ISA naming the
// namespace.
#include "cpu/cells/tiles.h"

#include "cpu/cells/advance.h"
#include "cpu/cells/finish.h"
#include "cpu/simd.h"

namespace deq {
namespace DEQ_ISA {
namespace {

// Vectors of a row that a product computes together, and how many sums it keeps in registers, of
// which AVX-512 has 32 and others 16.
#if DEQ_VECTOR_BYTES == 64
constexpr int kRegisterVectors = 4;
constexpr int kRegisterSums = 24;
#else
constexpr int kRegisterVectors = 2;
constexpr int kRegisterSums = 12;
#endif

// Rows taken together; more than 12 only make longer code.
template <int vectors>
constexpr int kRegisterRows = kRegisterSums / vectors < 12 ? kRegisterSums / vectors : 12;

template <typename accum_t>
void scale_rows(const accum_t* z, const accum_t* c, int64_t size, accum_t* out) {
  for (int64_t i = 0; i < size; i += kLanes<accum_t>) {
    store(load(c + i, accum_t()) * load(z + i, accum_t()), out + i);
  }
}

template <int vectors, typename accum_t>
inline void gather_columns(int64_t begin, int64_t end, const int64_t* col, const accum_t* values,
                           int64_t first, const accum_t* y, int64_t stride, accum_t* out) {
  Vector<accum_t> sums[vectors] = {};
  for (int64_t e = begin; e < end; ++e) {
    const accum_t* row = y + (col[e] - first) * stride;
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      sums[v] += values[e] * load(row + v * kLanes<accum_t>, accum_t());
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    store(sums[v], out + v * kLanes<accum_t>);
  }
}

template <typename accum_t>
void gather(const int64_t* crow, const int64_t* col, const accum_t* values, int64_t first,
            const accum_t* y, int64_t stride, int64_t rows, accum_t* out) {
  constexpr int64_t lanes = kLanes<accum_t>;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t begin = crow[row];
    const int64_t end = crow[row + 1];
    accum_t* out_row = out + row * stride;
    int64_t i = 0;
    for (; i + 4 * lanes <= stride; i += 4 * lanes) {
      gather_columns<4>(begin, end, col, values, first, y + i, stride, out_row + i);
    }
    for (; i < stride; i += lanes) {
      gather_columns<1>(begin, end, col, values, first, y + i, stride, out_row + i);
    }
  }
}

// Terms of a sum that are added up by themselves before they meet the rest: a chain of all terms
// rounds too often, each time by the size of what it has come to.
constexpr int64_t kChainTerms = 64;

// The terms from `begin` to `end` of out = in V^T: added to what is there, but for the first.
template <int rows, int vectors, typename accum_t>
void multiply_chain(const accum_t* packed, int64_t begin, int64_t end, int64_t stride,
                    const accum_t* in, accum_t* out, const CellLines& ahead) {
  constexpr int lanes = kLanes<accum_t>;
  Vector<accum_t> sums[rows][vectors] = {};
  for (int64_t k = begin; k < end; ++k) {
    ahead.fetch(k);
    Vector<accum_t> weights[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      weights[v] = load(packed + (k * vectors + v) * lanes, accum_t());
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const accum_t factor = in[r * stride + k];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        sums[r][v] += factor * weights[v];
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      accum_t* to = out + r * stride + v * lanes;
      store(begin == 0 ? sums[r][v] : load(to, accum_t()) + sums[r][v], to);
    }
  }
}

// `rows` is at most `most`.
template <int most, int vectors, typename accum_t>
void multiply_rest(const accum_t* packed, int64_t begin, int64_t end, int64_t stride, int64_t rows,
                   const accum_t* in, accum_t* out, const CellLines& ahead) {
  if constexpr (most > 0) {
    if (rows == most) {
      multiply_chain<most, vectors>(packed, begin, end, stride, in, out, ahead);
    } else {
      multiply_rest<most - 1, vectors>(packed, begin, end, stride, rows, in, out, ahead);
    }
  }
}

// All rows take a run of terms before the next run, while its weights are in the cache.
template <int vectors, typename accum_t>
void multiply_columns(const accum_t* packed, int64_t dim, int64_t stride, int64_t rows,
                      const accum_t* in, accum_t* out, const CellAhead& ahead, int64_t part) {
  constexpr int together = kRegisterRows<vectors>;
  for (int64_t begin = 0; begin < dim; begin += kChainTerms) {
    const int64_t end = begin + kChainTerms < dim ? begin + kChainTerms : dim;
    int64_t row = 0;
    for (; row + together <= rows; row += together) {
      multiply_chain<together, vectors>(packed, begin, end, stride, in + row * stride,
                                        out + row * stride, {ahead, part, row, together});
    }
    multiply_rest<together - 1, vectors>(packed, begin, end, stride, rows - row, in + row * stride,
                                         out + row * stride, {ahead, part, row, rows - row});
  }
}

template <typename accum_t>
void multiply(const accum_t* packed, int64_t dim, int64_t stride, int64_t rows, const accum_t* in,
              accum_t* out, const CellAhead& ahead) {
  constexpr int64_t lanes = kLanes<accum_t>;
  constexpr int64_t block = kRegisterVectors * lanes;
  static_assert(block <= kMostCellColumns, "a block is packed by way of kMostCellColumns elements");
  int64_t i = 0;
  int64_t part = 0;
  for (; i + block <= stride; i += block) {
    multiply_columns<kRegisterVectors>(packed + i * dim, dim, stride, rows, in, out + i, ahead,
                                       part++);
  }
  packed += i * dim;
  switch ((stride - i) / lanes) {
#if DEQ_VECTOR_BYTES == 64
    case 3:
      return multiply_columns<3>(packed, dim, stride, rows, in, out + i, ahead, part);
    case 2:
      return multiply_columns<2>(packed, dim, stride, rows, in, out + i, ahead, part);
#endif
    case 1:
      return multiply_columns<1>(packed, dim, stride, rows, in, out + i, ahead, part);
    default:
      return;
  }
}

}  // namespace

template <typename accum_t>
const CellTiles<accum_t>& cell_tiles() {
  static constexpr CellTiles<accum_t> tiles = {kLanes<accum_t>,
                                               kRegisterVectors * kLanes<accum_t>,
                                               scale_rows<accum_t>,
                                               gather<accum_t>,
                                               multiply<accum_t>,
                                               finish<accum_t, accum_t>,
                                               advance<accum_t, accum_t, accum_t>};
  return tiles;
}

template const CellTiles<double>& cell_tiles();
template const CellTiles<float>& cell_tiles();

}  // namespace DEQ_ISA
}  // namespace deq
