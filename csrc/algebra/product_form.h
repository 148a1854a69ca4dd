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
#pragma once

#include <cmath>
#include <cstdint>

#include "algebra/macros.h"

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
  // Takes <p_i, p_j>, i <= j, in as the newest column and row of G.
  DEQ_HOST_DEVICE void set_newest(int64_t j, const double* column) const {
    for (int64_t i = 0; i <= j; ++i) {
      row(i)[j] = column[i];
      row(j)[i] = column[i];
    }
  }
  // <p_j, u_i>; by the symmetry of G also what the transposed recurrence needs.
  DEQ_HOST_DEVICE double along(int64_t j, int64_t i) const {
    return gram(j, i + 1) + (step(i) - 1.0) * gram(j, i);
  }
};

// <p_j, w_j> where w_j = H_j x holds the factors before j: q_j + sum_{i<j} c_i <p_j, u_i>.
DEQ_HOST_DEVICE inline double forward_dot(const ProductForm& form, int64_t j, const double* c,
                                          double q_j) {
  double sum = q_j;
  for (int64_t i = 0; i < j; ++i) {
    sum += c[i] * form.along(j, i);
  }
  return sum;
}

// c_j = omega_j <p_j, w_j> for j < rank, in place of q_j = <p_j, H_0 x>.
DEQ_HOST_DEVICE inline void forward_substitution(const ProductForm& form, int64_t rank, double* q) {
  for (int64_t j = 0; j < rank; ++j) {
    q[j] = form.weight(j) * forward_dot(form, j, q, q[j]);
  }
}

// sum_j c_j u_j = sum_j e_j p_j with e_j = c_{j-1} + (alpha_j - 1) c_j, in place; e has rank + 1.
DEQ_HOST_DEVICE inline void expand_in_directions(const ProductForm& form, int64_t rank, double* c) {
  if (rank == 0) {
    c[0] = 0.0;
    return;
  }
  c[rank] = c[rank - 1];
  for (int64_t j = rank - 1; j > 0; --j) {
    c[j] = c[j - 1] + (form.step(j) - 1.0) * c[j];
  }
  c[0] *= form.step(0) - 1.0;
}

// H x = H_0 x + sum_{j <= rank} e_j p_j: from q_j = <p_j, H_0 x>, j < rank, to e, in place.
DEQ_HOST_DEVICE inline void matvec_coefficients(const ProductForm& form, int64_t rank, double* q) {
  forward_substitution(form, rank, q);
  expand_in_directions(form, rank, q);
}

// H^T x = H_0^T (x + sum_{j < rank} d_j p_j): from q_j = <p_j, x>, j <= rank, to d, in place.
DEQ_HOST_DEVICE inline void rmatvec_coefficients(const ProductForm& form, int64_t rank, double* q) {
  double q_next = q[rank];
  for (int64_t j = rank - 1; j >= 0; --j) {
    const double shift = form.step(j) - 1.0;
    double u_dot_y = q_next + shift * q[j];
    for (int64_t i = j + 1; i < rank; ++i) {
      u_dot_y += q[i] * form.along(i, j);
    }
    q_next = q[j];
    q[j] = form.weight(j) * u_dot_y;
  }
}

// The next direction p_count = scale * H_0 r + sum_{j < count} a_j p_j, from q_j = <p_j, H_0 r>.
//
// Finishes the newest factor (index count - 1) by setting its weight. With w = H_{count-1} r and
// pi = <p_{count-1}, w>:   p_count = -(N w + (alpha - 1) pi p_{count-1}) / (pi + N).
// Guard: a vanishing or non-finite denominator skips the factor, p_count = -w.
// Writes a over q and returns scale.
DEQ_HOST_DEVICE inline double direction_coefficients(const ProductForm& form, int64_t count,
                                                     double* q) {
  if (count == 0) {
    return -1.0;
  }
  const int64_t k = count - 1;
  forward_substitution(form, k, q);
  const double pi = forward_dot(form, k, q, q[k]);
  const double norm_sq = form.gram(k, k);
  const double denominator = pi + norm_sq;
  // Written so that NaN fails every comparison and lands in the guard.
  const bool usable = norm_sq > 0.0 && std::fabs(denominator) > kSingularShare * norm_sq &&
                      std::fabs(denominator) <= 1.0e300 && 1.0 / norm_sq <= 1.0e300;
  expand_in_directions(form, k, q);
  const double scale = usable ? -norm_sq / denominator : -1.0;
  for (int64_t j = 0; j < count; ++j) {
    q[j] *= scale;
  }
  if (usable) {
    q[k] -= (form.step(k) - 1.0) * pi / denominator;
  }
  form.weight(k) = usable ? 1.0 / norm_sq : 0.0;
  return scale;
}

}  // namespace deq
