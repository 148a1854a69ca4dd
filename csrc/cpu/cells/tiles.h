// The inner loops of structured cells, on rows that are padded to whole vectors.
//
// tiles.cpp is compiled once per instruction set; cell_tiles() returns the copy for this
// machine. Every matrix of rows has rows of `stride` elements, a multiple of `lanes`, of which the
// first `dim` count; the others of z, bias and scale are zero.
//
// Every element of a product is the sum of chains of multiply-adds over fixed runs of its terms, in
// their order, however many rows are taken together, so that a row's bits depend on nothing but the
// row.
#pragma once

#include <cstdint>

#include "algebra/activation.h"
#include "algebra/crop.h"

namespace deq {

// The widest block of columns of any instruction set.
constexpr int64_t kMostCellColumns = 64;

// What follows the product. Damped steps: next receives z + damping (f - z). Accelerated ones
// compare the residual r = f - z with o, the combined residual of the step before (algebra/crop.h).
// Differences of residuals may be kept as a shorter type, small_t; residuals may not, because near
// the end of slow solves their differences are all that counts.
template <typename accum_t, typename small_t = accum_t>
struct CellFinish {
  Activation activation;
  NormKind norm;
  double rtol;  // what a row is allowed, by rows
  double atol;
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
  const accum_t* scale;  // c, or null
  accum_t* scaled_next;  // receives c * next where there is a scale
  small_t* gap;          // receives u = o - r; null: steps are damped
  accum_t* combined;     // o; receives r where there is none
  const small_t* drift;  // v = o' - o
  // Of the sums over u and v, and whether there is no o yet, one for each
  const accum_t* units;
  const bool* fresh;
  bool each_row;  // sums per row, else of all rows together
  // Receives kCellSums for each, of which those over u and v only where there is a gap, and that
  // of unsettled rows only by rows
  double* sums;
};

// The step from an evaluated iterate. What it is to may be where what it is from is.
template <typename accum_t, typename small_t = accum_t>
struct CellStep {
  accum_t length;  // damping (1 - share)
  accum_t share;
  accum_t momentum;  // where it is zero, drift and moved are not read
  int64_t size;
  const accum_t* z;
  const accum_t* combined;
  const small_t* gap;
  const small_t* drift;
  const small_t* moved;  // z - z'
  accum_t* next_z;
  accum_t* next_combined;
  small_t* next_drift;
  small_t* next_moved;   // receives next_z - z, to which next_z is exact
  const accum_t* scale;  // c, or null
};

// Rows that are read right after a product of as many. It asks for them on its way, one part with
// each block of columns, so that they have come from a far cache when it ends.
struct CellAhead {
  static constexpr int64_t kParts = 4;

  const void* part[kParts];  // or null
  int64_t row_bytes[kParts];
};

// The lines of some of those rows.
class CellLines {
 public:
  CellLines(const CellAhead& ahead, int64_t part, int64_t row, int64_t rows)
      : first_(nullptr), lines_(0) {
    if (part < CellAhead::kParts && ahead.part[part] != nullptr) {
      first_ = static_cast<const char*>(ahead.part[part]) + row * ahead.row_bytes[part];
      lines_ = rows * ahead.row_bytes[part] / kLine;
    }
  }

  void fetch(int64_t line) const {
    if (line < lines_) {
      __builtin_prefetch(first_ + line * kLine, 0, 2);
    }
  }

 private:
  static constexpr int64_t kLine = 64;

  const char* first_;
  int64_t lines_;
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
                   const accum_t* in, accum_t* out, const CellAhead& ahead);
  void (*finish)(const CellFinish<accum_t>& arguments);
  // scaled = c * next_z, unless that is null.
  void (*advance)(const CellStep<accum_t>& step, accum_t* scaled);
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
