// The contract of every op on its tensors, checked the same way by every library.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <optional>

#include "algebra/activation.h"
#include "algebra/gmres.h"
#include "algebra/termination.h"
#include "torch/checks.h"

namespace deq {

// The max_steps of a record [batch, kNormColumns + max_steps]: norms, then the trace.
inline int64_t record_steps(const Tensor& record) {
  STD_TORCH_CHECK(record.dim() == 2 && record.size(1) > kNormColumns, "record must be [batch, ",
                  static_cast<int64_t>(kNormColumns), " + max_steps]");
  return record.size(1) - kNormColumns;
}

struct StepShape {
  int64_t batch;
  int64_t dim;
  int64_t capacity;  // directions stored per sample; 0 for a method without
  int64_t max_steps;
};

// What every solver step takes: f(z) with dense rows, the iterates, and the termination tables.
inline StepShape check_state(const Tensor& f_z, const Tensor& z, const Tensor& best_z,
                             const Tensor& record, const Tensor& counters, const Tensor& active) {
  STD_TORCH_CHECK(z.dim() == 2, "z must be [batch, dim], got ", z.dim(), " dimensions");
  const StepShape shape = {z.size(0), z.size(1), 0, record_steps(record)};
  const ScalarType dtype = z.scalar_type();
  check_shape(f_z, "f_z", {shape.batch, shape.dim});
  check_dtype(f_z, "f_z", dtype);
  check_dense_rows(f_z, "f_z");
  check_contiguous(z, "z");
  check_table(best_z, "best_z", dtype, {shape.batch, shape.dim});
  check_table(record, "record", ScalarType::Double, {shape.batch, kNormColumns + shape.max_steps});
  check_table(counters, "counters", ScalarType::Long, {shape.batch, kCounterColumns});
  check_table(active, "active", ScalarType::Long, {1});
  return shape;
}

// `tile`: how many elements of a sample share a partial sum, which `scratch` has room for.
inline StepShape check_broyden_step(const Tensor& f_z, const Tensor& z, const Tensor& best_z,
                                    const Tensor& directions, const Tensor& algebra,
                                    const Tensor& record, const Tensor& counters,
                                    const Tensor& active, const Tensor& scratch, int64_t tile) {
  StepShape shape = check_state(f_z, z, best_z, record, counters, active);
  STD_TORCH_CHECK(directions.dim() == 3 && directions.size(1) >= 1,
                  "directions must be [batch, history_length + 1, dim] with room for at least one "
                  "direction");
  const int64_t capacity = shape.capacity = directions.size(1);
  check_shape(directions, "directions", {shape.batch, capacity, shape.dim});
  check_dense_rows(directions, "directions");
  check_table(algebra, "algebra", ScalarType::Double, {shape.batch, capacity, capacity + 2});
  check_table(scratch, "scratch", ScalarType::Double,
              {shape.batch, (shape.dim + tile - 1) / tile + 1, 2 + 2 * capacity});
  return shape;
}

inline StepShape check_anderson_step(const Tensor& f_z, const Tensor& z, const Tensor& best_z,
                                     const Tensor& residual_changes, const Tensor& image_changes,
                                     const Tensor& last_residual, const Tensor& algebra,
                                     const Tensor& record, const Tensor& counters,
                                     const Tensor& active, const Tensor& scratch, int64_t tile) {
  StepShape shape = check_state(f_z, z, best_z, record, counters, active);
  STD_TORCH_CHECK(residual_changes.dim() == 3,
                  "residual_changes must be [batch, history_length - 1, dim], got ",
                  residual_changes.dim(), " dimensions");
  const int64_t capacity = shape.capacity = residual_changes.size(1);
  check_shape(residual_changes, "residual_changes", {shape.batch, capacity, shape.dim});
  check_dense_rows(residual_changes, "residual_changes");
  check_shape(image_changes, "image_changes", {shape.batch, capacity, shape.dim});
  check_dtype(image_changes, "image_changes", residual_changes.scalar_type());
  check_dense_rows(image_changes, "image_changes");
  check_table(last_residual, "last_residual", z.scalar_type(), {shape.batch, shape.dim});
  check_table(algebra, "algebra", ScalarType::Double, {shape.batch, capacity, 2 * capacity});
  check_table(scratch, "scratch", ScalarType::Double,
              {shape.batch, (shape.dim + tile - 1) / tile + 1, 2 + 2 * capacity});
  return shape;
}

inline StepShape check_gmres_step(const Tensor& f_z, const Tensor& z, const Tensor& best_z,
                                  const Tensor& basis, const Tensor& start,
                                  const Tensor& start_residual, const Tensor& algebra,
                                  const Tensor& record, const Tensor& counters,
                                  const Tensor& active, const Tensor& scratch, int64_t tile) {
  StepShape shape = check_state(f_z, z, best_z, record, counters, active);
  STD_TORCH_CHECK(basis.dim() == 3 && basis.size(1) >= 2,
                  "basis must be [batch, columns + 1, dim] with room for at least one column");
  const int64_t columns = shape.capacity = basis.size(1) - 1;
  const ScalarType accum =
      z.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check_shape(basis, "basis", {shape.batch, columns + 1, shape.dim});
  check_dtype(basis, "basis", accum);
  check_dense_rows(basis, "basis");
  check_table(start, "start", accum, {shape.batch, shape.dim});
  check_table(start_residual, "start_residual", accum, {shape.batch, shape.dim});
  check_table(algebra, "algebra", ScalarType::Double,
              {shape.batch, GmresTable::table_size(columns)});
  check_table(scratch, "scratch", ScalarType::Double,
              {shape.batch, (shape.dim + tile - 1) / tile + 1, GmresSums::kDots + columns});
  return shape;
}

inline StepShape check_damped_step(const Tensor& f_z, const Tensor& z, const Tensor& best_z,
                                   const Tensor& record, const Tensor& counters,
                                   const Tensor& active, const Tensor& scratch, int64_t tile) {
  const StepShape shape = check_state(f_z, z, best_z, record, counters, active);
  check_table(scratch, "scratch", ScalarType::Double,
              {shape.batch, (shape.dim + tile - 1) / tile + 1, 2});
  return shape;
}

struct NeumannShape {
  int64_t batch;
  int64_t dim;
};

inline NeumannShape check_neumann_step(const Tensor& vjp, const Tensor& cotangent, const Tensor& w,
                                       const Tensor& norms) {
  STD_TORCH_CHECK(w.dim() == 2, "w must be [batch, dim], got ", w.dim(), " dimensions");
  const NeumannShape shape = {w.size(0), w.size(1)};
  const ScalarType dtype = w.scalar_type();
  check_contiguous(w, "w");
  check_shape(vjp, "vjp", {shape.batch, shape.dim});
  check_dtype(vjp, "vjp", dtype);
  check_dense_rows(vjp, "vjp");
  check_shape(cotangent, "cotangent", {shape.batch, shape.dim});
  check_dtype(cotangent, "cotangent", dtype);
  check_dense_rows(cotangent, "cotangent");
  check_table(norms, "norms", ScalarType::Double, {shape.batch, 2});
  return shape;
}

struct ProductShape {
  int64_t batch;
  int64_t capacity;  // rows stored per sample
  int64_t dim;
  int64_t columns;  // right-hand sides per sample
};

inline ProductShape check_product(const Tensor& rows, const char* name, const Tensor& rank,
                                  const Tensor& x, const char* rank_name = "rank") {
  STD_TORCH_CHECK(x.dim() == 3, "x must be [batch, columns, dim], got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(rows.dim() == 3, name, " must be [batch, rows, dim], got ", rows.dim(),
                  " dimensions");
  const ProductShape shape = {x.size(0), rows.size(1), x.size(2), x.size(1)};
  check_shape(rows, name, {shape.batch, shape.capacity, shape.dim});
  check_dense_rows(rows, name);
  check_table(rank, rank_name, ScalarType::Long, {shape.batch});
  check_contiguous(x, "x");
  return shape;
}

inline ProductShape check_broyden_matvec(const Tensor& directions, const Tensor& algebra,
                                         const Tensor& rank, const Tensor& x) {
  const ProductShape shape = check_product(directions, "directions", rank, x);
  check_table(algebra, "algebra", ScalarType::Double,
              {shape.batch, shape.capacity, shape.capacity + 2});
  return shape;
}

inline ProductShape check_low_rank_matvec(const Tensor& u, const Tensor& v, const Tensor& rank,
                                          const Tensor& x) {
  const ProductShape shape = check_product(v, "v", rank, x);
  check_shape(u, "u", {shape.batch, shape.capacity, shape.dim});
  check_dtype(u, "u", v.scalar_type());
  check_dense_rows(u, "u");
  return shape;
}

inline ProductShape check_low_rank_dots(const Tensor& rows, const Tensor& count, const Tensor& x) {
  return check_product(rows, "rows", count, x, "count");
}

inline ProductShape check_low_rank_combine(const Tensor& rows, const Tensor& count,
                                           const Tensor& coefficients, const Tensor& x) {
  const ProductShape shape = check_low_rank_dots(rows, count, x);
  check_table(coefficients, "coefficients", ScalarType::Double,
              {shape.batch, shape.columns, shape.capacity});
  return shape;
}

struct AppendShape {
  int64_t batch;
  int64_t capacity;
  int64_t dim;
};

inline AppendShape check_low_rank_append(const Tensor& u, const Tensor& v, const Tensor& rank,
                                         const Tensor& s, const Tensor& y) {
  STD_TORCH_CHECK(s.dim() == 2, "s must be [batch, dim], got ", s.dim(), " dimensions");
  STD_TORCH_CHECK(u.dim() == 3, "u must be [batch, history_length, dim], got ", u.dim(),
                  " dimensions");
  const AppendShape shape = {s.size(0), u.size(1), s.size(1)};
  check_contiguous(s, "s");
  check_table(y, "y", s.scalar_type(), {shape.batch, shape.dim});
  check_shape(u, "u", {shape.batch, shape.capacity, shape.dim});
  check_dense_rows(u, "u");
  check_shape(v, "v", {shape.batch, shape.capacity, shape.dim});
  check_dtype(v, "v", u.scalar_type());
  check_dense_rows(v, "v");
  check_table(rank, "rank", ScalarType::Long, {shape.batch});
  return shape;
}

struct CellsShape {
  int64_t rows;
  int64_t dim;
  int64_t samples;
  int64_t entries;  // of S; 0 without
  int64_t max_steps;
};

// What is stored in crow, col and sample_ptr is checked where it can be read.
inline CellsShape check_cells_iterate(const Tensor& weight, const std::optional<Tensor>& crow,
                                      const std::optional<Tensor>& col,
                                      const std::optional<Tensor>& values,
                                      const std::optional<Tensor>& sample_ptr, const Tensor& bias,
                                      const std::optional<Tensor>& scale, const Tensor& z,
                                      const Tensor& record, const Tensor& counters,
                                      const Tensor& active, int64_t activation, int64_t norm,
                                      bool fixed_steps, bool accelerate) {
  STD_TORCH_CHECK(z.dim() == 2, "z must be [rows, dim], got ", z.dim(), " dimensions");
  CellsShape shape = {z.size(0), z.size(1), z.size(0), 0, record_steps(record)};
  const ScalarType dtype = z.scalar_type();
  check_contiguous(z, "z");
  check_shape(weight, "weight", {shape.dim, shape.dim});
  check_dtype(weight, "weight", dtype);
  check_shape(bias, "bias", {shape.rows, shape.dim});
  check_dtype(bias, "bias", dtype);
  check_dense_rows(bias, "bias");
  if (scale) {
    check_shape(*scale, "scale", {shape.rows, shape.dim});
    check_dtype(*scale, "scale", dtype);
    check_dense_rows(*scale, "scale");
  }
  if (sample_ptr) {
    STD_TORCH_CHECK(sample_ptr->dim() == 1 && sample_ptr->size(0) >= 1,
                    "sample_ptr must be [samples + 1]");
    shape.samples = sample_ptr->size(0) - 1;
    check_table(*sample_ptr, "sample_ptr", ScalarType::Long, {shape.samples + 1});
  }
  STD_TORCH_CHECK(crow.has_value() == col.has_value() && crow.has_value() == values.has_value(),
                  "crow, col and values must be given together");
  if (crow) {
    STD_TORCH_CHECK(sample_ptr.has_value(), "crow needs sample_ptr: which rows form a sample");
    STD_TORCH_CHECK(values->dim() == 1, "values must be [entries], got ", values->dim(),
                    " dimensions");
    shape.entries = values->size(0);
    check_table(*crow, "crow", ScalarType::Long, {shape.rows + 1});
    check_table(*col, "col", ScalarType::Long, {shape.entries});
    check_table(*values, "values", dtype, {shape.entries});
  }
  check_table(record, "record", ScalarType::Double,
              {shape.samples, kNormColumns + shape.max_steps});
  check_table(counters, "counters", ScalarType::Long, {shape.samples, kCounterColumns});
  check_table(active, "active", ScalarType::Long, {1});
  STD_TORCH_CHECK(0 <= activation && activation < kActivations, "activation must be 0 to ",
                  kActivations - 1, ", got ", activation);
  STD_TORCH_CHECK(0 <= norm && norm < kNormKinds, "norm must be 0 to ", kNormKinds - 1, ", got ",
                  norm);
  STD_TORCH_CHECK(!(fixed_steps && accelerate), "fixed_steps are damped steps; got accelerate too");
  return shape;
}

}  // namespace deq
