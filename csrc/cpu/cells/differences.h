// The inner loops of evaluations that follow from the one before: where a product S (c z) V^T is
// known, that of the next iterate adds S (c d) V^T, whose d, the change of the iterate, is small
// enough to be rounded to bfloat16 together with V. Formulas: docs/algebra.md, section 3.
//
// differences.cpp is compiled for processors that multiply pairs of bfloat16. Rows are laid
// out as in tiles.h.
#pragma once

#include <cstdint>

#include "algebra/types.h"
#include "cpu/cells/tiles.h"

namespace deq {

// Cells with fewer columns gain nothing: rounding costs what the products save.
constexpr int64_t kLeastDifferenceDim = 48;
// Columns of a product that are computed together.
constexpr int64_t kDifferenceColumns = 64;
// Pairs in a row of V.
inline int64_t difference_pairs(int64_t dim) { return (dim + 1) / 2; }

// Two neighbours of a row of V.
struct BFloat16Pair {
  bfloat16 first;
  bfloat16 second;
};

struct CellDifferences {
  // From V as CellTiles::block packs it, with the same blocks of columns:
  // packed[p * width + column] = (V[column, 2 p], V[column, 2 p + 1]), zero past the end.
  void (*pack)(const float* weight, int64_t dim, int64_t stride, BFloat16Pair* packed);
  // As CellTiles::gather.
  void (*gather)(const int64_t* crow, const int64_t* col, const float* values, int64_t first,
                 const bfloat16* y, int64_t stride, int64_t rows, bfloat16* out);
  // product = in V^T
  void (*multiply)(const BFloat16Pair* packed, int64_t dim, int64_t stride, int64_t rows,
                   const bfloat16* in, float* product, const CellAhead& ahead);
  // As CellTiles::finish and CellTiles::advance where what is looked back on is bfloat16 too.
  void (*finish)(const CellFinish<float, bfloat16>& arguments);
  void (*advance)(const CellStep<float, bfloat16>& step, float* scaled);
  // The same, with c next_moved instead of c next_z.
  void (*advance_change)(const CellStep<float, bfloat16>& step, bfloat16* change);
};

// Null where the processor has no such instruction, or DEQ_KERNELS_CPU_ISA denies it.
const CellDifferences* cell_differences();

namespace avx512_bf16 {
const CellDifferences& cell_differences();
}

}  // namespace deq
