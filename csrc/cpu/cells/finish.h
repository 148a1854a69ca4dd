// What follows the product of a structured cell: for the files that are compiled once per
// instruction set, in whose namespace it lies.
#pragma once

#include <cstdint>

#include "algebra/cell_verdict.h"
#include "cpu/cells/activation.h"
#include "cpu/cells/tiles.h"
#include "cpu/simd.h"

namespace deq {
namespace DEQ_ISA {
namespace {

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

// What is summed of residuals and values, over all rows together.
template <typename Norm, typename accum_t>
class WholeNorms {
 public:
  void add(Vector<accum_t> residual, Vector<accum_t> value) {
    residual_.add(residual);
    value_.add(value);
  }
  void end_row(double, double) {}
  void store(double* sums) const {
    sums[kResidualNorm] = residual_.squared();
    sums[kValueNorm] = value_.squared();
  }

 private:
  Norm residual_;
  Norm value_;
};

// The largest of each row's. NaN stays NaN.
template <typename accum_t>
class RowNorms {
 public:
  void add(Vector<accum_t> residual, Vector<accum_t> value) {
    residual_.add(residual);
    value_.add(value);
  }
  void end_row(double rtol, double atol) {
    const double residual = residual_.squared();
    const double value = value_.squared();
    largest(residual, &largest_residual_);
    largest(value, &largest_value_);
    largest(unsettled(residual, value, rtol, atol), &unsettled_);
    residual_ = value_ = TwoNorm<accum_t>();
  }
  void store(double* sums) const {
    sums[kResidualNorm] = largest_residual_;
    sums[kValueNorm] = largest_value_;
    sums[kUnsettledNorm] = unsettled_;
  }

 private:
  static void largest(double x, double* of) { *of = x > *of || x != x ? x : *of; }

  TwoNorm<accum_t> residual_;
  TwoNorm<accum_t> value_;
  double largest_residual_ = 0.0;
  double largest_value_ = 0.0;
  double unsettled_ = 0.0;
};

// Unlike sum_lanes, this leaves a vector of floats that a loop adds to in its register.
inline double sum_wide(Vector<double> x) { return sum_lanes(x); }
inline double sum_wide(Vector<float> x) { return sum_lanes(widen_half(x, 0) + widen_half(x, 1)); }

// Rows [begin, end), with their sums.
template <Activation activation, typename Norms, bool accelerate, bool undamped, typename accum_t,
          typename small_t>
void finish_range(const CellFinish<accum_t, small_t>& a, int64_t begin, int64_t end,
                  const IntVector<accum_t> kept, const accum_t unit, const bool fresh,
                  double* sums) {
  constexpr int lanes = kLanes<accum_t>;
  Norms norms;
  Vector<accum_t> uu = {};
  Vector<accum_t> uv = {};
  Vector<accum_t> vv = {};
  Vector<accum_t> ur = {};
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
      norms.add(residual, f);
      if constexpr (accelerate) {
        const Vector<accum_t> combined = fresh ? residual : load(a.combined + i, accum_t());
        const Vector<accum_t> gap = combined - residual;
        const Vector<accum_t> u = unit * gap;
        const Vector<accum_t> v = unit * load(a.drift + i, accum_t());
        uu += u * u;
        uv += u * v;
        vv += v * v;
        ur += u * (unit * residual);
        store(gap, a.gap + i);
        if (fresh) {
          store(combined, a.combined + i);
        }
      } else {
        const Vector<accum_t> next = undamped ? f : z + a.damping * residual;
        store(next, a.next + i);
        if (a.scaled_next != nullptr) {
          store(load(a.scale + i, accum_t()) * next, a.scaled_next + i);
        }
      }
    }
    norms.end_row(a.rtol, a.atol);
  }
  norms.store(sums);
  if constexpr (accelerate) {
    sums[kSquareU] = sum_wide(uu);
    sums[kProductUV] = sum_wide(uv);
    sums[kSquareV] = sum_wide(vv);
    sums[kProductUR] = sum_wide(ur);
  }
}

template <Activation activation, typename Norms, bool accelerate, bool undamped, typename accum_t,
          typename small_t>
void finish_rows(const CellFinish<accum_t, small_t>& arguments) {
  // A copy, which no store of this function can change.
  const CellFinish<accum_t, small_t> a = arguments;
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
    const bool fresh = accelerate && a.fresh[item];
    finish_range<activation, Norms, accelerate, undamped>(a, row, row + together, kept, unit, fresh,
                                                          a.sums + item * kCellSums);
  }
}

template <Activation activation, typename Norms, typename accum_t, typename small_t>
void finish_norms(const CellFinish<accum_t, small_t>& a) {
  if (a.gap != nullptr) {
    finish_rows<activation, Norms, true, false>(a);
  } else if (a.damping == accum_t(1)) {
    finish_rows<activation, Norms, false, true>(a);
  } else {
    finish_rows<activation, Norms, false, false>(a);
  }
}

template <Activation activation, typename accum_t, typename small_t>
void finish_activation(const CellFinish<accum_t, small_t>& a) {
  switch (a.norm) {
    case NormKind::kTwo:
      return finish_norms<activation, WholeNorms<TwoNorm<accum_t>, accum_t>>(a);
    case NormKind::kMax:
      return finish_norms<activation, WholeNorms<MaxNorm<accum_t>, accum_t>>(a);
    case NormKind::kRows:
      return finish_norms<activation, RowNorms<accum_t>>(a);
  }
}

// The kernel for a's activation, looked for from `number` on.
template <int64_t number, typename accum_t, typename small_t>
void finish_numbered(const CellFinish<accum_t, small_t>& a) {
  if constexpr (number < kActivations) {
    constexpr Activation activation = static_cast<Activation>(number);
    return a.activation == activation ? finish_activation<activation>(a)
                                      : finish_numbered<number + 1>(a);
  }
}

template <typename accum_t, typename small_t>
void finish(const CellFinish<accum_t, small_t>& a) {
  finish_numbered<0>(a);
}

}  // namespace
}  // namespace DEQ_ISA
}  // namespace deq
