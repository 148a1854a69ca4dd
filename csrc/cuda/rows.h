// The stored rows of one sample over one tile: their dots with a vector or two, and their
// combination. Rows are read a group at a time, all loads of a group before the first use.
#pragma once

#include <cstdint>
#include <type_traits>

#include "algebra/macros.h"
#include "algebra/multiply_add.h"
#include "cuda/tile.h"

namespace deq {

// What of the rows a block keeps in shared memory, as one thread sees it.
struct KeptRows {
  char* slots;  // this thread's first slot of row 0 in the tile
  int64_t row_bytes;
  int rows;
};

template <typename history_t>
struct Rows {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(history_t));
  static constexpr int kSegments = kGpuItems / kVector;
  static constexpr int kGroup = rows_per_group(sizeof(history_t));
  static constexpr int64_t kSlotStride = kGpuThreads * static_cast<int64_t>(sizeof(Slot));

  const history_t* data;  // row 0 at the tile's first element
  int64_t stride;         // elements from row to row
  int size;               // elements of the tile
  bool aligned;           // every row begins on 16 bytes
  KeptRows kept;
};

enum class RowSource { kKept, kWhole, kAny };

// The group of rows from j on, of `count` in all; zero beyond the rows and beyond the tile.
template <RowSource source, typename history_t, typename Block>
DEQ_DEVICE void load_group(const Block& block, const Rows<history_t>& rows, int j, int count,
                           Slot (&out)[Rows<history_t>::kGroup][Rows<history_t>::kSegments]) {
  using R = Rows<history_t>;
  DEQ_UNROLL
  for (int g = 0; g < R::kGroup; ++g) {
    DEQ_UNROLL
    for (int s = 0; s < R::kSegments; ++s) {
      out[g][s] = {};
      if (j + g >= count) {
        continue;
      }
      if (source == RowSource::kKept) {
        // A short tile fills no slots beyond its end.
        if (s * kGpuThreads * R::kVector < rows.size) {
          out[g][s] =
              load_pack<Slot>(rows.kept.slots + (j + g) * rows.kept.row_bytes + s * R::kSlotStride);
        }
        continue;
      }
      const int i = item_begin<R::kVector>(block, s);
      const history_t* from = rows.data + (j + g) * rows.stride + i;
      if (source == RowSource::kWhole || (rows.aligned && i + R::kVector <= rows.size)) {
        out[g][s] = load_pack<Slot>(from);
      } else {
        out[g][s] = gather_slot(from, rows.size - i);
      }
    }
  }
}

template <typename history_t, typename Block, typename Body>
DEQ_DEVICE void with_group(const Block& block, const Rows<history_t>& rows, int j, int count,
                           const Body& body) {
  using R = Rows<history_t>;
  Slot group[R::kGroup][R::kSegments];
  if (j < rows.kept.rows) {
    load_group<RowSource::kKept>(block, rows, j, count, group);
  } else if (rows.aligned && rows.size == kGpuTile) {
    load_group<RowSource::kWhole>(block, rows, j, count, group);
  } else {
    load_group<RowSource::kAny>(block, rows, j, count, group);
  }
  body(group);
}

// This thread's elements of one row.
template <typename history_t, typename accum_t, typename Block>
DEQ_DEVICE void load_row(const Block& block, const Rows<history_t>& rows, int j,
                         accum_t (&out)[kGpuItems]) {
  using R = Rows<history_t>;
  if (j >= rows.kept.rows) {
    load_items<R::kVector>(block, rows.data + j * rows.stride, rows.size, out);
    return;
  }
  DEQ_UNROLL
  for (int s = 0; s < R::kSegments; ++s) {
    Slot slot = {};
    if (s * kGpuThreads * R::kVector < rows.size) {
      slot = load_pack<Slot>(rows.kept.slots + j * rows.kept.row_bytes + s * R::kSlotStride);
    }
    DEQ_UNROLL
    for (int v = 0; v < R::kVector; ++v) {
      out[s * R::kVector + v] = slot_item<history_t>(slot, v);
    }
  }
}

// <row_j, x> to sums_x and, for a pair, <row_j, y> to sums_y, j < count. A thread takes its
// products in sum_type, which is accum_t where it is void.
template <bool pair, typename sum_type = void, typename history_t, typename accum_t, typename Block>
DEQ_DEVICE void dot_rows(const Block& block, const Rows<history_t>& rows, int count,
                         const accum_t (&x)[kGpuItems], const accum_t (&y)[kGpuItems],
                         double* flush, const TileSums& sums_x, const TileSums& sums_y) {
  using R = Rows<history_t>;
  using sum_t = std::conditional_t<std::is_void_v<sum_type>, accum_t, sum_type>;
  // Rows summed at a time; registers do not hold wider sums of a whole group of short rows.
  constexpr int kSummed = sizeof(sum_t) > sizeof(accum_t) && R::kGroup > 4 ? 4 : R::kGroup;
  constexpr int kDots = pair ? 2 * kSummed : kSummed;
  for (int first = 0; first < count; first += kRowsPerFlush) {
    const int flushed = count - first < kRowsPerFlush ? count - first : kRowsPerFlush;
    for (int j = first; j < first + flushed; j += R::kGroup) {
      with_group(block, rows, j, count, [&](const auto& group) {
        DEQ_UNROLL
        for (int part = 0; part < R::kGroup; part += kSummed) {
          sum_t dots[kDots] = {};
          DEQ_UNROLL
          for (int g = 0; g < kSummed; ++g) {
            DEQ_UNROLL
            for (int i = 0; i < kGpuItems; ++i) {
              const sum_t value =
                  slot_item<history_t>(group[part + g][i / R::kVector], i % R::kVector);
              dots[g] = multiply_add(value, static_cast<sum_t>(x[i]), dots[g]);
              if (pair) {
                sum_t& dot_y = dots[(pair ? kSummed : 0) + g];
                dot_y = multiply_add(value, static_cast<sum_t>(y[i]), dot_y);
              }
            }
          }
          // Values of x fill places 0 .. kRowsPerFlush - 1 of the flush, those of y the rest.
          const double sum = static_cast<double>(sum_over_warp(block, dots));
          constexpr int lanes_each = kGpuWarp / kDots;
          if (block.lane() % lanes_each == 0) {
            const int value = block.lane() / lanes_each;
            const int place = value / kSummed * kRowsPerFlush + value % kSummed + part + j - first;
            flush[block.warp() * kFlushValues + place] = sum;
          }
        }
      });
    }
    block.sync();
    add_warps(block, flush, 0, flushed, sums_x.from(first));
    if (pair) {
      add_warps(block, flush, kRowsPerFlush, flushed, sums_y.from(first));
    }
    block.sync();
  }
}

// out = scale * out + sum_{j < count} coefficients_j row_j, from the last row to the first: the
// last ones are the likeliest to be in a cache.
template <typename history_t, typename accum_t, typename Block>
DEQ_DEVICE void combine_rows(const Block& block, const Rows<history_t>& rows, int count,
                             const double* coefficients, accum_t scale, accum_t (&out)[kGpuItems]) {
  using R = Rows<history_t>;
  DEQ_UNROLL
  for (int i = 0; i < kGpuItems; ++i) {
    out[i] *= scale;
  }
  for (int j = (count - 1) / R::kGroup * R::kGroup; count > 0 && j >= 0; j -= R::kGroup) {
    with_group(block, rows, j, count, [&](const auto& group) {
      DEQ_UNROLL
      for (int g = R::kGroup - 1; g >= 0; --g) {
        const accum_t c = j + g < count ? static_cast<accum_t>(coefficients[j + g]) : accum_t(0);
        DEQ_UNROLL
        for (int i = 0; i < kGpuItems; ++i) {
          const accum_t value = slot_item<history_t>(group[g][i / R::kVector], i % R::kVector);
          out[i] = multiply_add(c, value, out[i]);
        }
      }
    });
  }
}

}  // namespace deq
