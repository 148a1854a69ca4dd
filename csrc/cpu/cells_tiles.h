// The inner loops of structured cells, on rows that are padded to whole vectors.
//
// cells_tiles.cpp is compiled once per instruction set; cell_tiles() returns the copy for this
// machine. Every matrix of rows has rows of `stride` elements, a multiple of `lanes`, of which the
// first `dim` count; the others of z, bias and scale are zero.
//
// Every element of a product is the sum of chains of multiply-adds over fixed runs of its terms, in
// their order, however many rows are taken together, so that a row's bits depend on nothing but the
// row.
#pragma once

#include <cstdint>

#include "algebra/activation.h"
#include "algebra/secant.h"

namespace deq {

// The widest block of columns of any instruction set.
constexpr int64_t kMostCellColumns = 64;

// What follows the product: next receives z + damping (f - z).
template <typename accum_t>
struct CellFinish {
  Activation activation;
  NormKind norm;
  accum_t damping;
  int64_t dim;
  int64_t stride;
  int64_t rows;
  const accum_t* z;
  // S (c z) V^T + b is the sum of both; the product may be where next goes
  const accum_t* product;
  const accum_t* base;
  accum_t* sum;  // or null; receives it, and may be where either is
  accum_t* next;
  const accum_t* scale;  // c, or null, as where there is a residual: extrapolate() scales then
  accum_t* scaled_next;  // receives c * next where there is a scale
  accum_t* residual;     // where steps are accelerated: r' on entry, f - z on exit; else null
  const accum_t* units;  // of the last two sums, one for each
  bool each_row;         // sums per row, else of all rows together
  double* sums;          // receives kCellSums for each, the last two where there is a residual
};

template <typename accum_t>
struct CellTiles {
  int64_t lanes;
  // Columns that are computed together. The weight V is packed for it, one block of columns after
  // another: packed[k * width + column] = V[column, k] with the width of the block, which is
  // `block`, in the last one what is left, rounded up to whole vectors. The padding is zero.
  int64_t block;
  // out = c * z
  void (*scale)(const accum_t* z, const accum_t* c, int64_t size, accum_t* out);
  // out_i = sum_e values_e y_{col_e - first}, e from crow_i to crow_{i + 1}, in that order
  void (*gather)(const int64_t* crow, const int64_t* col, const accum_t* values, int64_t first,
                 const accum_t* y, int64_t stride, int64_t rows, accum_t* out);
  // out = in V^T; they must not overlap.
  void (*multiply)(const accum_t* packed, int64_t dim, int64_t stride, int64_t rows,
                   const accum_t* in, accum_t* out);
  void (*finish)(const CellFinish<accum_t>& arguments);
  // out = g - secant (g - last_g) for `size` elements, and scaled_out = c * out where there is a c.
  void (*extrapolate)(const accum_t* g, const accum_t* last_g, accum_t secant, int64_t size,
                      const accum_t* c, accum_t* out, accum_t* scaled_out);
};

template <typename accum_t>
const CellTiles<accum_t>& cell_tiles();

#define DEQ_DECLARE_CELL_TILES(isa)       \
  namespace isa {                         \
  template <typename accum_t>             \
  const CellTiles<accum_t>& cell_tiles(); \
  }
DEQ_DECLARE_CELL_TILES(baseline)
DEQ_DECLARE_CELL_TILES(avx2)
DEQ_DECLARE_CELL_TILES(avx512)
#undef DEQ_DECLARE_CELL_TILES

}  // namespace deq
