// The rank-sized algebra of the one-vector ("product form") good Broyden inverse.
//
// Source: docs/algebra.md, section 1; C. T. Kelley, Iterative Methods for Linear and Nonlinear
// Equations (1995), chapter 7. One sample at a time; no vectors of the state's dimension appear.
//
//   H = (I + u_{r-1} p_{r-1}^T / N_{r-1}) ... (I + u_0 p_0^T / N_0) H_0,   N_j = <p_j, p_j>
//   u_j = p_{j+1} + (alpha_j - 1) p_j
//
// Symbols: p_j stored directions, alpha_j step lengths, omega_j factor weights (1 / N_j, or 0 for
// a factor that a guard skipped), G the Gram matrix of the directions, r the rank.
//
// The triangular systems are solved column by column: once an unknown is known, it leaves all
// later equations at once, which is the part that lanes share. Every equation still adds its terms
// in the order of the unknowns, so that the number of lanes changes no bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/lanes.h"
#include "algebra/macros.h"
#include "algebra/multiply_add.h"

namespace deq {

// A denominator below this share of N_k leaves no digits in the new direction.
constexpr double kSingularShare = 1e-8;

// One sample's rank-sized table: row j holds G_j0 ... G_j,capacity-1, alpha_j, omega_j.
struct ProductForm {
  double* table;  // [capacity, capacity + 2]
  int64_t capacity;

  DEQ_HOST_DEVICE static int64_t table_size(int64_t capacity) { return capacity * (capacity + 2); }
  DEQ_HOST_DEVICE double* row(int64_t j) const { return table + j * (capacity + 2); }
  // G_ij = <p_i, p_j> of the directions as stored.
  DEQ_HOST_DEVICE double gram(int64_t i, int64_t j) const { return row(i)[j]; }
  // alpha_j: z_{j+1} = z_j + alpha_j p_j.
  DEQ_HOST_DEVICE double& step(int64_t j) const { return row(j)[capacity]; }
  // omega_j: 1 / N_j, or 0 where the guard skipped the factor.
  DEQ_HOST_DEVICE double& weight(int64_t j) const { return row(j)[capacity + 1]; }
  // Lets factor 0 leave a full table: the others move up, but for the newest direction's dots,
  // which are to be set. Every entry is read before a lane overwrites it.
  template <typename Lanes>
  DEQ_HOST_DEVICE void drop_oldest(const Lanes& lanes) const {
    const int64_t left = capacity - 1;
    for (int64_t j = 0; j < left; ++j) {
      for_each_lane(lanes, 0, left, [&](int64_t i) { row(j)[i] = row(j + 1)[i + 1]; });
      if (lanes.first()) {
        step(j) = step(j + 1);
        weight(j) = weight(j + 1);
      }
      lanes.sync();
    }
  }
  // Takes <p_i, p_j>, i <= j, in as the newest column and row of G.
  template <typename Lanes>
  DEQ_HOST_DEVICE void set_newest(const Lanes& lanes, int64_t j, const double* column) const {
    for_each_lane(lanes, 0, j + 1, [&](int64_t i) {
      row(i)[j] = column[i];
      row(j)[i] = column[i];
    });
  }
};

// From q_j = <p_j, H_0 x>, j < rows, in place: c_j = omega_j <p_j, w_j> for j < rank, where
// w_j = H_j x holds the factors before j, and <p_j, w> with w = H_rank x for the other rows.
//   <p_j, w_j> = q_j + sum_{i<j} c_i <p_j, u_i>
template <typename Lanes>
DEQ_HOST_DEVICE inline void forward_substitution(const Lanes& lanes, const ProductForm& form,
                                                 int64_t rank, int64_t rows, double* q) {
  for (int64_t i = 0; i < rank; ++i) {
    const double c = form.weight(i) * q[i];
    const double shift = form.step(i) - 1.0;
    lanes.sync();  // everyone has read q_i
    if (lanes.first()) {
      q[i] = c;
    }
    for_each_lane(lanes, i + 1, rows, [&](int64_t j) {
      q[j] = multiply_add(c, multiply_add(shift, form.gram(i, j), form.gram(i + 1, j)), q[j]);
    });
    lanes.sync();
  }
}

// sum_j c_j u_j = sum_j e_j p_j with e_j = c_{j-1} + (alpha_j - 1) c_j, in place; e has rank + 1.
template <typename Lanes>
DEQ_HOST_DEVICE inline void expand_in_directions(const Lanes& lanes, const ProductForm& form,
                                                 int64_t rank, double* c) {
  // From the end, as many entries at a time as there are lanes: each reads its lower neighbour.
  for (int64_t end = rank + 1; end > 0; end -= lanes.count()) {
    const int64_t j = end - 1 - lanes.index();
    double e = 0.0;
    if (j >= 0) {
      const double share = j < rank ? form.step(j) - 1.0 : 0.0;
      e = multiply_add(share, j < rank ? c[j] : 0.0, j > 0 ? c[j - 1] : 0.0);
    }
    lanes.sync();
    if (j >= 0) {
      c[j] = e;
    }
    lanes.sync();
  }
}

// H x = H_0 x + sum_{j <= rank} e_j p_j: from q_j = <p_j, H_0 x>, j < rank, to e, in place.
template <typename Lanes>
DEQ_HOST_DEVICE inline void matvec_coefficients(const Lanes& lanes, const ProductForm& form,
                                                int64_t rank, double* q) {
  forward_substitution(lanes, form, rank, rank, q);
  expand_in_directions(lanes, form, rank, q);
}

// H^T x = H_0^T (x + sum_{j < rank} d_j p_j): from q_j = <p_j, x>, j <= rank, to d, in place.
//   d_j = omega_j ( <u_j, x> + sum_{i>j} d_i <p_i, u_j> )
template <typename Lanes>
DEQ_HOST_DEVICE inline void rmatvec_coefficients(const Lanes& lanes, const ProductForm& form,
                                                 int64_t rank, double* q) {
  // <u_j, x> from the start, as many entries at a time as there are lanes: each reads its upper
  // neighbour.
  for (int64_t begin = 0; begin < rank; begin += lanes.count()) {
    const int64_t j = begin + lanes.index();
    const double u_dot_x = j < rank ? multiply_add(form.step(j) - 1.0, q[j], q[j + 1]) : 0.0;
    lanes.sync();
    if (j < rank) {
      q[j] = u_dot_x;
    }
    lanes.sync();
  }
  for (int64_t i = rank - 1; i >= 0; --i) {
    const double d = form.weight(i) * q[i];
    lanes.sync();
    if (lanes.first()) {
      q[i] = d;
    }
    for_each_lane(lanes, 0, i, [&](int64_t j) {
      const double u_dot_p = multiply_add(form.step(j) - 1.0, form.gram(i, j), form.gram(i, j + 1));
      q[j] = multiply_add(d, u_dot_p, q[j]);
    });
    lanes.sync();
  }
}

// `rank` factors are made of rank + 1 directions, and the empty product of none.
DEQ_HOST_DEVICE inline int64_t directions_of_rank(int64_t rank) { return rank == 0 ? 0 : rank + 1; }

// H x, or H^T x, = scale x + sum_{j <= rank} a_j p_j with H_0 = scale I: from q_j = <p_j, x>,
// j <= rank, to a, in place.
template <typename Lanes>
DEQ_HOST_DEVICE inline void product_coefficients(const Lanes& lanes, const ProductForm& form,
                                                 int64_t rank, double scale, bool transpose,
                                                 double* q) {
  if (rank == 0) {
    return;
  }
  if (transpose) {
    rmatvec_coefficients(lanes, form, rank, q);
    for_each_lane(lanes, 0, rank + 1, [&](int64_t j) { q[j] = j < rank ? scale * q[j] : 0.0; });
  } else {
    for_each_lane(lanes, 0, rank, [&](int64_t j) { q[j] *= scale; });
    lanes.sync();
    matvec_coefficients(lanes, form, rank, q);
  }
  lanes.sync();
}

// The next direction p_count = scale * H_0 r + sum_{j < count} a_j p_j, from q_j = <p_j, H_0 r>.
//
// Finishes the newest factor (index count - 1) by setting its weight. With w = H_{count-1} r and
// pi = <p_{count-1}, w>:   p_count = -(N w + (alpha - 1) pi p_{count-1}) / (pi + N).
// Guard: a vanishing or non-finite denominator skips the factor, p_count = -w.
// Writes a over q and returns scale.
template <typename Lanes>
DEQ_HOST_DEVICE inline double direction_coefficients(const Lanes& lanes, const ProductForm& form,
                                                     int64_t count, double* q) {
  if (count == 0) {
    return -1.0;
  }
  const int64_t k = count - 1;
  forward_substitution(lanes, form, k, count, q);
  const double pi = q[k];
  const double norm_sq = form.gram(k, k);
  const double denominator = pi + norm_sq;
  // Written so that NaN fails every comparison and lands in the guard.
  const bool usable = norm_sq > 0.0 && std::fabs(denominator) > kSingularShare * norm_sq &&
                      std::fabs(denominator) <= 1.0e300 && 1.0 / norm_sq <= 1.0e300;
  lanes.sync();
  expand_in_directions(lanes, form, k, q);
  const double scale = usable ? -norm_sq / denominator : -1.0;
  for_each_lane(lanes, 0, count, [&](int64_t j) {
    const double own = usable && j == k ? (form.step(k) - 1.0) * pi / denominator : 0.0;
    q[j] = multiply_add(scale, q[j], -own);
  });
  if (lanes.first()) {
    form.weight(k) = usable ? 1.0 / norm_sq : 0.0;
  }
  lanes.sync();
  return scale;
}

}  // namespace deq
