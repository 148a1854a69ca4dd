// The inner loops. Compiled once per instruction set with DEQ_ISA naming the namespace.
//
// Order of summation: lane sums over one tile in accum_t, lanes added in order in double. It
// depends on the tile's length alone, so neither threads nor neighbours can change a bit.
#include "cpu/tiles.h"

#include "cpu/simd.h"

namespace deq {
namespace DEQ_ISA {
namespace {

template <typename accum_t, typename storage_t>
inline Vector<accum_t> load_at(const storage_t* p, int64_t i, int64_t n, bool partial) {
  return partial ? load_partial<accum_t>(p + i, n - i) : load(p + i, accum_t());
}

template <typename storage_t, typename vector_t>
inline void store_at(vector_t v, storage_t* p, int64_t i, int64_t n, bool partial) {
  if (partial) {
    store_partial(v, p + i, n - i);
  } else {
    store(v, p + i);
  }
}

// ||x||^2 of a tile buffer in double, four sums in flight to cover the latency of an addition.
template <typename accum_t>
double norm_sq(const accum_t* x, int64_t n) {
  constexpr int lanes = kLanes<double>;
  Vector<double> sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    for (int s = 0; s < 4; ++s) {
      const Vector<double> v = load(x + i + s * lanes, double());
      sums[s] += v * v;
    }
  }
  for (; i < n; i += lanes) {
    const Vector<double> v = load_at<double>(x, i, n, i + lanes > n);
    sums[0] += v * v;
  }
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <typename state_t, typename accum_t = accumulate_t<state_t>>
void load_scaled(const state_t* x, accum_t scale, int64_t n, accum_t* out) {
  for_each_vector<accum_t>(n, [&](int64_t i, bool partial) {
    store(load_at<accum_t>(x, i, n, partial) * scale, out + i);
  });
}

template <typename state_t, typename accum_t = accumulate_t<state_t>>
void store_tile(const accum_t* x, int64_t n, state_t* out) {
  for_each_vector<accum_t>(
      n, [&](int64_t i, bool partial) { store_at(load(x + i, accum_t()), out, i, n, partial); });
}

template <typename state_t, typename accum_t = accumulate_t<state_t>>
void residual(const state_t* f, const state_t* z, int64_t n, accum_t* r) {
  for_each_vector<accum_t>(n, [&](int64_t i, bool partial) {
    store(load_at<accum_t>(f, i, n, partial) - load_at<accum_t>(z, i, n, partial), r + i);
  });
}

template <typename state_t, typename accum_t = accumulate_t<state_t>>
void residual_norms(const state_t* f, const state_t* z, int64_t n, accum_t* r, accum_t* f_loaded,
                    double* residual_sq, double* f_sq) {
  for_each_vector<accum_t>(n, [&](int64_t i, bool partial) {
    const Vector<accum_t> f_i = load_at<accum_t>(f, i, n, partial);
    store(f_i, f_loaded + i);
    store(f_i - load_at<accum_t>(z, i, n, partial), r + i);
  });
  *residual_sq = norm_sq(r, n);
  *f_sq = norm_sq(f_loaded, n);
}

template <typename state_t, typename accum_t = accumulate_t<state_t>>
void advance(const accum_t* p, accum_t step, int64_t n, state_t* z) {
  for_each_vector<accum_t>(n, [&](int64_t i, bool partial) {
    const Vector<accum_t> z_i = load_at<accum_t>(z, i, n, partial);
    store_at(z_i + step * load(p + i, accum_t()), z, i, n, partial);
  });
}

template <typename state_t, typename accum_t = accumulate_t<state_t>>
void relax(const state_t* f, accum_t damping, int64_t n, state_t* z) {
  for_each_vector<accum_t>(n, [&](int64_t i, bool partial) {
    const Vector<accum_t> f_i = load_at<accum_t>(f, i, n, partial);
    const Vector<accum_t> z_i = load_at<accum_t>(z, i, n, partial);
    store_at(damping == accum_t(1) ? f_i : z_i + damping * (f_i - z_i), z, i, n, partial);
  });
}

template <typename state_t, typename accum_t = accumulate_t<state_t>>
void neumann(const state_t* vjp, const state_t* l, accum_t damping, int64_t n, state_t* w,
             accum_t* changed, accum_t* updated, double* change_sq, double* updated_sq) {
  for_each_vector<accum_t>(n, [&](int64_t i, bool partial) {
    const Vector<accum_t> target =
        load_at<accum_t>(l, i, n, partial) + load_at<accum_t>(vjp, i, n, partial);
    const Vector<accum_t> w_i = load_at<accum_t>(w, i, n, partial);
    const Vector<accum_t> change = damping * (target - w_i);
    store(change, changed + i);
    store(w_i + change, updated + i);
    store_at(w_i + change, w, i, n, partial);
  });
  *change_sq = norm_sq(changed, n);
  *updated_sq = norm_sq(updated, n);
}

// `group` rows at a time share each load of x (and y); their sums stay in registers.
template <int group, bool pair, typename history_t, typename accum_t>
inline void dot_group(const history_t* rows, int64_t stride, const accum_t* x, const accum_t* y,
                      int64_t n, double* out_x, double* out_y) {
  Vector<accum_t> sum_x[group] = {};
  Vector<accum_t> sum_y[group] = {};
  for_each_vector<accum_t>(n, [&](int64_t i, bool partial) {
    const Vector<accum_t> x_i = load(x + i, accum_t());
    const Vector<accum_t> y_i = pair ? load(y + i, accum_t()) : x_i;
#pragma GCC unroll 8
    for (int j = 0; j < group; ++j) {
      const Vector<accum_t> row = load_at<accum_t>(rows + j * stride, i, n, partial);
      sum_x[j] += row * x_i;
      if (pair) {
        sum_y[j] += row * y_i;
      }
    }
  });
#pragma GCC unroll 8
  for (int j = 0; j < group; ++j) {
    out_x[j] = sum_lanes(sum_x[j]);
    if (pair) {
      out_y[j] = sum_lanes(sum_y[j]);
    }
  }
}

template <bool pair, typename history_t, typename accum_t>
inline void dot_rows(const history_t* rows, int64_t stride, int64_t count, const accum_t* x,
                     const accum_t* y, int64_t n, double* out_x, double* out_y) {
  constexpr int group = 4;
  int64_t j = 0;
  for (; j + group <= count; j += group) {
    dot_group<group, pair>(rows + j * stride, stride, x, y, n, out_x + j, out_y + j);
  }
  const history_t* rest = rows + j * stride;
  switch (count - j) {
    case 3:
      return dot_group<3, pair>(rest, stride, x, y, n, out_x + j, out_y + j);
    case 2:
      return dot_group<2, pair>(rest, stride, x, y, n, out_x + j, out_y + j);
    case 1:
      return dot_group<1, pair>(rest, stride, x, y, n, out_x + j, out_y + j);
    default:
      return;
  }
}

template <typename history_t, typename accum_t>
void dots(const history_t* rows, int64_t stride, int64_t count, const accum_t* x, int64_t n,
          double* out) {
  dot_rows<false>(rows, stride, count, x, x, n, out, out);
}

template <typename history_t, typename accum_t>
void dots_pair(const history_t* rows, int64_t stride, int64_t count, const accum_t* x,
               const accum_t* y, int64_t n, double* out_x, double* out_y) {
  dot_rows<true>(rows, stride, count, x, y, n, out_x, out_y);
}

template <int group, typename history_t, typename accum_t>
inline void combine_group(const history_t* rows, int64_t stride, const double* coefficients,
                          accum_t scale, int64_t n, accum_t* accum) {
  accum_t c[group];
  for (int j = 0; j < group; ++j) {
    c[j] = static_cast<accum_t>(coefficients[j]);
  }
  for_each_vector<accum_t>(n, [&](int64_t i, bool partial) {
    Vector<accum_t> sum = scale * load(accum + i, accum_t());
#pragma GCC unroll 8
    for (int j = 0; j < group; ++j) {
      sum += c[j] * load_at<accum_t>(rows + j * stride, i, n, partial);
    }
    store(sum, accum + i);
  });
}

template <typename history_t, typename accum_t>
void combine(const history_t* rows, int64_t stride, int64_t count, const double* coefficients,
             double scale, int64_t n, accum_t* accum) {
  constexpr int group = 4;
  accum_t factor = static_cast<accum_t>(scale);
  int64_t j = 0;
  for (; j + group <= count; j += group) {
    combine_group<group>(rows + j * stride, stride, coefficients + j, factor, n, accum);
    factor = accum_t(1);
  }
  const history_t* rest = rows + j * stride;
  switch (count - j) {
    case 3:
      return combine_group<3>(rest, stride, coefficients + j, factor, n, accum);
    case 2:
      return combine_group<2>(rest, stride, coefficients + j, factor, n, accum);
    case 1:
      return combine_group<1>(rest, stride, coefficients + j, factor, n, accum);
    default:
      return factor == accum_t(1)
                 ? void()
                 : combine_group<0>(rest, stride, coefficients + j, factor, n, accum);
  }
}

template <typename history_t, typename accum_t>
void load_row(const history_t* row, int64_t n, accum_t* out) {
  for_each_vector<accum_t>(
      n, [&](int64_t i, bool partial) { store(load_at<accum_t>(row, i, n, partial), out + i); });
}

template <typename history_t, typename accum_t>
void store_rounded(accum_t* values, int64_t n, history_t* row) {
  for_each_vector<accum_t>(n, [&](int64_t i, bool partial) {
    history_t rounded[kLanes<accum_t>];
    store(load(values + i, accum_t()), rounded);
    store(load(rounded, accum_t()), values + i);
    const int64_t lanes = partial ? n - i : kLanes<accum_t>;
    __builtin_memcpy(row + i, rounded, static_cast<unsigned long>(lanes) * sizeof(history_t));
  });
}

}  // namespace

template <typename state_t>
const StateTiles<state_t>& state_tiles() {
  static constexpr StateTiles<state_t> tiles = {
      load_scaled<state_t>, store_tile<state_t>, residual<state_t>, residual_norms<state_t>,
      advance<state_t>,     relax<state_t>,      neumann<state_t>};
  return tiles;
}

template <typename history_t, typename accum_t>
const HistoryTiles<history_t, accum_t>& history_tiles() {
  static constexpr HistoryTiles<history_t, accum_t> tiles = {
      dots<history_t, accum_t>, dots_pair<history_t, accum_t>, combine<history_t, accum_t>,
      load_row<history_t, accum_t>, store_rounded<history_t, accum_t>};
  return tiles;
}

template const StateTiles<double>& state_tiles();
template const StateTiles<float>& state_tiles();
template const StateTiles<float16>& state_tiles();
template const StateTiles<bfloat16>& state_tiles();
template const HistoryTiles<double, double>& history_tiles();
template const HistoryTiles<float, double>& history_tiles();
template const HistoryTiles<float16, double>& history_tiles();
template const HistoryTiles<bfloat16, double>& history_tiles();
template const HistoryTiles<float, float>& history_tiles();
template const HistoryTiles<float16, float>& history_tiles();
template const HistoryTiles<bfloat16, float>& history_tiles();

}  // namespace DEQ_ISA
}  // namespace deq
