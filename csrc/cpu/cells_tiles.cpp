// The inner loops of structured cells. Compiled once per instruction set with DEQ_ISA naming the
// namespace.
#include "cpu/cells_tiles.h"

#include "cpu/cells_activation.h"
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
                    const accum_t* in, accum_t* out) {
  constexpr int lanes = kLanes<accum_t>;
  Vector<accum_t> sums[rows][vectors] = {};
  for (int64_t k = begin; k < end; ++k) {
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
                   const accum_t* in, accum_t* out) {
  if constexpr (most > 0) {
    if (rows == most) {
      multiply_chain<most, vectors>(packed, begin, end, stride, in, out);
    } else {
      multiply_rest<most - 1, vectors>(packed, begin, end, stride, rows, in, out);
    }
  }
}

// All rows take a run of terms before the next run, while its weights are in the cache.
template <int vectors, typename accum_t>
void multiply_columns(const accum_t* packed, int64_t dim, int64_t stride, int64_t rows,
                      const accum_t* in, accum_t* out) {
  constexpr int together = kRegisterRows<vectors>;
  for (int64_t begin = 0; begin < dim; begin += kChainTerms) {
    const int64_t end = begin + kChainTerms < dim ? begin + kChainTerms : dim;
    int64_t row = 0;
    for (; row + together <= rows; row += together) {
      multiply_chain<together, vectors>(packed, begin, end, stride, in + row * stride,
                                        out + row * stride);
    }
    multiply_rest<together - 1, vectors>(packed, begin, end, stride, rows - row, in + row * stride,
                                         out + row * stride);
  }
}

template <typename accum_t>
void multiply(const accum_t* packed, int64_t dim, int64_t stride, int64_t rows, const accum_t* in,
              accum_t* out) {
  constexpr int64_t lanes = kLanes<accum_t>;
  constexpr int64_t block = kRegisterVectors * lanes;
  static_assert(block <= kMostCellColumns, "a block is packed by way of kMostCellColumns elements");
  int64_t i = 0;
  for (; i + block <= stride; i += block) {
    multiply_columns<kRegisterVectors>(packed + i * dim, dim, stride, rows, in, out + i);
  }
  packed += i * dim;
  switch ((stride - i) / lanes) {
#if DEQ_VECTOR_BYTES == 64
    case 3:
      return multiply_columns<3>(packed, dim, stride, rows, in, out + i);
    case 2:
      return multiply_columns<2>(packed, dim, stride, rows, in, out + i);
#endif
    case 1:
      return multiply_columns<1>(packed, dim, stride, rows, in, out + i);
    default:
      return;
  }
}

// The square of the largest magnitude. Magnitudes order like their bits, NaN above all others.
template <typename accum_t>
class MaxNorm {
 public:
  void add(Vector<accum_t> x) {
    const IntVector<accum_t> bits = magnitude_bits<accum_t>(x);
    largest_ = bits > largest_ ? bits : largest_;
  }
  double squared() const {
    typename FloatFormat<accum_t>::Int largest = 0;
    for (int i = 0; i < kLanes<accum_t>; ++i) {
      largest = largest_[i] > largest ? largest_[i] : largest;
    }
    accum_t value;
    __builtin_memcpy(&value, &largest, sizeof(value));
    return static_cast<double>(value) * static_cast<double>(value);
  }

 private:
  IntVector<accum_t> largest_ = {};
};

// The sum of squares, in double so that no float32 state overflows it.
template <typename accum_t>
class TwoNorm;

template <>
class TwoNorm<double> {
 public:
  void add(Vector<double> x) { sum_ += x * x; }
  double squared() const { return sum_lanes(sum_); }

 private:
  Vector<double> sum_ = {};
};

// The lower or upper half of a vector. Compilers convert it in pieces unless they are told.
inline Vector<double> widen_half(Vector<float> x, int half) {
  using Half = VectorOf<float, DEQ_VECTOR_BYTES / 2>::type;
  Half halves[2];
  __builtin_memcpy(halves, &x, sizeof(x));
#if defined(__AVX512F__)
  return _mm512_maskz_cvtps_pd(0xff, halves[half]);
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(halves[half]);
#else
  return __builtin_convertvector(halves[half], Vector<double>);
#endif
}

template <>
class TwoNorm<float> {
 public:
  void add(Vector<float> x) {
    for (int i = 0; i < 2; ++i) {
      const Vector<double> wide = widen_half(x, i);
      sums_[i] += wide * wide;
    }
  }
  double squared() const { return sum_lanes(sums_[0] + sums_[1]); }

 private:
  Vector<double> sums_[2] = {};
};

// Unlike sum_lanes, this leaves a vector of floats that a loop adds to in its register.
inline double sum_wide(Vector<double> x) { return sum_lanes(x); }
inline double sum_wide(Vector<float> x) { return sum_lanes(widen_half(x, 0) + widen_half(x, 1)); }

// Rows [begin, end), with their sums.
template <Activation activation, typename Norm, bool accelerate, bool undamped, typename accum_t>
void finish_range(const CellFinish<accum_t>& a, int64_t begin, int64_t end,
                  const IntVector<accum_t> kept, const accum_t unit, double* sums) {
  constexpr int lanes = kLanes<accum_t>;
  Norm residual_norm;
  Norm value_norm;
  Vector<accum_t> change_square = {};
  Vector<accum_t> change_residual = {};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t last = (row + 1) * a.stride - lanes;
    for (int64_t i = row * a.stride; i <= last; i += lanes) {
      const Vector<accum_t> sum = load(a.base + i, accum_t()) + load(a.product + i, accum_t());
      if (a.sum != nullptr) {
        store(sum, a.sum + i);
      }
      Vector<accum_t> f = activate<activation, accum_t>(sum);
      if (i == last) {
        const IntVector<accum_t> bits = load_bits<IntVector<accum_t>>(&f) & kept;
        f = load_bits<Vector<accum_t>>(&bits);
      }
      const Vector<accum_t> z = load(a.z + i, accum_t());
      const Vector<accum_t> residual = f - z;
      residual_norm.add(residual);
      value_norm.add(f);
      if constexpr (accelerate) {
        const Vector<accum_t> change = unit * (residual - load(a.residual + i, accum_t()));
        change_square += change * change;
        change_residual += change * (unit * residual);
        store(residual, a.residual + i);
      }
      const Vector<accum_t> next = undamped ? f : z + a.damping * residual;
      store(next, a.next + i);
      if constexpr (!accelerate) {
        if (a.scaled_next != nullptr) {
          store(load(a.scale + i, accum_t()) * next, a.scaled_next + i);
        }
      }
    }
  }
  sums[kResidualNorm] = residual_norm.squared();
  sums[kValueNorm] = value_norm.squared();
  if constexpr (accelerate) {
    sums[kChangeSquare] = sum_wide(change_square);
    sums[kChangeResidual] = sum_wide(change_residual);
  }
}

template <Activation activation, typename Norm, bool accelerate, bool undamped, typename accum_t>
void finish_rows(const CellFinish<accum_t>& arguments) {
  // A copy, which no store of this function can change.
  const CellFinish<accum_t> a = arguments;
  constexpr int lanes = kLanes<accum_t>;
  // Which lanes of a row's last vector count.
  accum_t ones[lanes];
  for (int i = 0; i < lanes; ++i) {
    ones[i] = a.stride - lanes + i < a.dim ? accum_t(1) : accum_t(0);
  }
  const IntVector<accum_t> kept = load(ones, accum_t()) != Vector<accum_t>{};
  const int64_t together = a.each_row ? 1 : a.rows;
  for (int64_t row = 0; row < a.rows; row += together) {
    const int64_t item = row / together;
    const accum_t unit = accelerate ? a.units[item] : accum_t(1);
    finish_range<activation, Norm, accelerate, undamped>(a, row, row + together, kept, unit,
                                                         a.sums + item * kCellSums);
  }
}

template <typename accum_t>
void extrapolate(const accum_t* g, const accum_t* last_g, accum_t secant, int64_t size,
                 const accum_t* c, accum_t* out, accum_t* scaled_out) {
  for (int64_t i = 0; i < size; i += kLanes<accum_t>) {
    const Vector<accum_t> from = load(g + i, accum_t());
    const Vector<accum_t> next = from - secant * (from - load(last_g + i, accum_t()));
    store(next, out + i);
    if (c != nullptr) {
      store(load(c + i, accum_t()) * next, scaled_out + i);
    }
  }
}

template <Activation activation, typename Norm, typename accum_t>
void finish_norm(const CellFinish<accum_t>& a) {
  const bool undamped = a.damping == accum_t(1);
  if (a.residual == nullptr) {
    undamped ? finish_rows<activation, Norm, false, true>(a)
             : finish_rows<activation, Norm, false, false>(a);
  } else {
    undamped ? finish_rows<activation, Norm, true, true>(a)
             : finish_rows<activation, Norm, true, false>(a);
  }
}

template <Activation activation, typename accum_t>
void finish_activation(const CellFinish<accum_t>& a) {
  if (a.norm == NormKind::kMax) {
    finish_norm<activation, MaxNorm<accum_t>>(a);
  } else {
    finish_norm<activation, TwoNorm<accum_t>>(a);
  }
}

template <typename accum_t>
void finish(const CellFinish<accum_t>& a) {
  switch (a.activation) {
    case Activation::kIdentity:
      return finish_activation<Activation::kIdentity>(a);
    case Activation::kRelu:
      return finish_activation<Activation::kRelu>(a);
    case Activation::kTanh:
      return finish_activation<Activation::kTanh>(a);
    case Activation::kSigmoid:
      return finish_activation<Activation::kSigmoid>(a);
    case Activation::kElu:
      return finish_activation<Activation::kElu>(a);
    case Activation::kSoftplus:
      return finish_activation<Activation::kSoftplus>(a);
    case Activation::kGelu:
      return finish_activation<Activation::kGelu>(a);
  }
}

}  // namespace

template <typename accum_t>
const CellTiles<accum_t>& cell_tiles() {
  static constexpr CellTiles<accum_t> tiles = {
      kLanes<accum_t>,     kRegisterVectors * kLanes<accum_t>,
      scale_rows<accum_t>, gather<accum_t>,
      multiply<accum_t>,   finish<accum_t>,
      extrapolate<accum_t>};
  return tiles;
}

template const CellTiles<double>& cell_tiles();
template const CellTiles<float>& cell_tiles();

}  // namespace DEQ_ISA
}  // namespace deq
