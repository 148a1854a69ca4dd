// The inner loops, one tile (at most kTile elements of one sample) at a time.
//
// tiles.cpp is compiled once per instruction set; state_tiles() and history_tiles() return the
// copy for this machine. A tile buffer holds kTile accum_t, is 64-byte aligned, and may be written
// past `n` up to the next multiple of the vector length (with zeros).
#pragma once

#include <cstdint>

#include "algebra/types.h"
#include "cpu/plan.h"

namespace deq {

// Loops over the state: f, z and what is made of them.
template <typename state_t>
struct StateTiles {
  using accum_t = accumulate_t<state_t>;

  // out = scale * x
  void (*load)(const state_t* x, accum_t scale, int64_t n, accum_t* out);
  void (*store)(const accum_t* x, int64_t n, state_t* out);
  // r = f - z
  void (*residual)(const state_t* f, const state_t* z, int64_t n, accum_t* r);
  // Also ||r||^2 and ||f||^2, summed in double so that no float32 state overflows them.
  // `f_loaded` is a tile buffer that receives f.
  void (*residual_norms)(const state_t* f, const state_t* z, int64_t n, accum_t* r,
                         accum_t* f_loaded, double* residual_sq, double* f_sq);
  // z += step * p
  void (*advance)(const accum_t* p, accum_t step, int64_t n, state_t* z);
  // z += damping * (f - z)
  void (*relax)(const state_t* f, accum_t damping, int64_t n, state_t* z);
  // w_new = damping * (l + vjp) + (1 - damping) * w, with ||w_new - w||^2 and ||w_new||^2.
  // `changed` and `updated` are tile buffers.
  void (*neumann)(const state_t* vjp, const state_t* l, accum_t damping, int64_t n, state_t* w,
                  accum_t* changed, accum_t* updated, double* change_sq, double* norm_sq);
};

// Loops over stored rows, `stride` elements apart.
template <typename history_t, typename accum_t>
struct HistoryTiles {
  // out_j = <row_j, x>
  void (*dots)(const history_t* rows, int64_t stride, int64_t count, const accum_t* x, int64_t n,
               double* out);
  // out_x_j = <row_j, x>, out_y_j = <row_j, y>, reading the rows once
  void (*dots_pair)(const history_t* rows, int64_t stride, int64_t count, const accum_t* x,
                    const accum_t* y, int64_t n, double* out_x, double* out_y);
  // accum = scale * accum + sum_j coefficients_j row_j
  void (*combine)(const history_t* rows, int64_t stride, int64_t count, const double* coefficients,
                  double scale, int64_t n, accum_t* accum);
  void (*load)(const history_t* row, int64_t n, accum_t* out);
  // Stores `values` and leaves in them what was stored, after rounding.
  void (*store_rounded)(accum_t* values, int64_t n, history_t* row);
};

template <typename state_t>
const StateTiles<state_t>& state_tiles();
template <typename history_t, typename accum_t>
const HistoryTiles<history_t, accum_t>& history_tiles();

// Name of the instruction set in use. DEQ_KERNELS_CPU_ISA lowers it, for tests and bug reports.
const char* active_isa();

#define DEQ_DECLARE_TILES(isa)                             \
  namespace isa {                                          \
  template <typename state_t>                              \
  const StateTiles<state_t>& state_tiles();                \
  template <typename history_t, typename accum_t>          \
  const HistoryTiles<history_t, accum_t>& history_tiles(); \
  }
DEQ_DECLARE_TILES(baseline)
DEQ_DECLARE_TILES(avx2)
DEQ_DECLARE_TILES(avx512)
#undef DEQ_DECLARE_TILES

}  // namespace deq
