// The contract of every op on its tensors, checked the same way by every library.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <optional>

#include "algebra/activation.h"
#include "algebra/gmres.h"
#include "algebra/termination.h"
#include "torch/checks.h"
#include "torch/memory.h"

namespace deq {

// The max_steps of a record [batch, kNormColumns + max_steps]: norms, then the trace.
inline int64_t record_steps(const Tensor& record) {
  STD_TORCH_CHECK(record.dim() == 2 && record.size(1) > kNormColumns, "record must be [batch, ",
                  static_cast<int64_t>(kNormColumns), " + max_steps]");
  return record.size(1) - kNormColumns;
}

// Tiles of a sample, and one row more for what they add up to; no size overflows it.
inline int64_t scratch_rows(int64_t dim, int64_t tile) {
  return dim / tile + (dim % tile != 0 ? 1 : 0) + 1;
}

// What every stopping rule takes.
inline void check_stopping(double rtol, double atol, double damping, int64_t stall_steps,
                           double divergence_factor) {
  check_not_negative(rtol, "rtol");
  check_finite(atol, "atol");  // below 0: a tolerance that no residual meets
  check_finite(damping, "damping");
  check_count(stall_steps, "stall_steps");
  STD_TORCH_CHECK(divergence_factor >= 0.0, "divergence_factor must be at least 0, got ",
                  divergence_factor);
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

// That nothing of it shares memory which is written to. `memory` knows what else a step writes to.
inline void check_state_memory(Memory* memory, const Tensor& f_z, const Tensor& z,
                               const Tensor& best_z, const Tensor& record, const Tensor& counters,
                               const Tensor& active, const Tensor& scratch) {
  memory->writes("z", z);
  memory->writes("best_z", best_z);
  memory->writes("record", record);
  memory->writes("counters", counters);
  memory->writes("active", active);
  memory->writes("scratch", scratch);
  memory->reads("f_z", f_z);
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
  check_rows(directions, "directions", {shape.batch, capacity, shape.dim});
  check_table(algebra, "algebra", ScalarType::Double, {shape.batch, capacity, capacity + 2});
  check_table(scratch, "scratch", ScalarType::Double,
              {shape.batch, scratch_rows(shape.dim, tile), 2 + 2 * capacity});
  Memory memory;
  memory.writes_rows("directions", directions);
  memory.writes("algebra", algebra);
  check_state_memory(&memory, f_z, z, best_z, record, counters, active, scratch);
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
  check_rows(residual_changes, "residual_changes", {shape.batch, capacity, shape.dim});
  check_rows(image_changes, "image_changes", {shape.batch, capacity, shape.dim});
  check_dtype(image_changes, "image_changes", residual_changes.scalar_type());
  check_table(last_residual, "last_residual", z.scalar_type(), {shape.batch, shape.dim});
  check_table(algebra, "algebra", ScalarType::Double, {shape.batch, capacity, 2 * capacity});
  check_table(scratch, "scratch", ScalarType::Double,
              {shape.batch, scratch_rows(shape.dim, tile), 2 + 2 * capacity});
  Memory memory;
  memory.writes_rows("residual_changes", residual_changes);
  memory.writes_rows("image_changes", image_changes);
  memory.writes("last_residual", last_residual);
  memory.writes("algebra", algebra);
  check_state_memory(&memory, f_z, z, best_z, record, counters, active, scratch);
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
  check_rows(basis, "basis", {shape.batch, columns + 1, shape.dim});
  check_dtype(basis, "basis", accum);
  check_table(start, "start", accum, {shape.batch, shape.dim});
  check_table(start_residual, "start_residual", accum, {shape.batch, shape.dim});
  check_table(algebra, "algebra", ScalarType::Double,
              {shape.batch, GmresTable::table_size(columns)});
  check_table(scratch, "scratch", ScalarType::Double,
              {shape.batch, scratch_rows(shape.dim, tile), GmresSums::kDots + columns});
  Memory memory;
  memory.writes_rows("basis", basis);
  memory.writes("start", start);
  memory.writes("start_residual", start_residual);
  memory.writes("algebra", algebra);
  check_state_memory(&memory, f_z, z, best_z, record, counters, active, scratch);
  return shape;
}

inline StepShape check_damped_step(const Tensor& f_z, const Tensor& z, const Tensor& best_z,
                                   const Tensor& record, const Tensor& counters,
                                   const Tensor& active, const Tensor& scratch, int64_t tile) {
  const StepShape shape = check_state(f_z, z, best_z, record, counters, active);
  check_table(scratch, "scratch", ScalarType::Double,
              {shape.batch, scratch_rows(shape.dim, tile), 2});
  Memory memory;
  check_state_memory(&memory, f_z, z, best_z, record, counters, active, scratch);
  return shape;
}

struct NeumannShape {
  int64_t batch;
  int64_t dim;
};

inline NeumannShape check_neumann_step(const Tensor& vjp, const Tensor& cotangent, const Tensor& w,
                                       const Tensor& norms, double damping) {
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
  check_finite(damping, "damping");
  Memory memory;
  memory.writes("w", w);
  memory.writes("norms", norms);
  memory.reads("vjp", vjp);
  memory.reads("cotangent", cotangent);
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
  check_rows(rows, name, {shape.batch, shape.capacity, shape.dim});
  check_table(rank, rank_name, ScalarType::Long, {shape.batch});
  check_contiguous(x, "x");
  check_readable({{name, &rows}, {rank_name, &rank}, {"x", &x}});
  return shape;
}

inline ProductShape check_broyden_matvec(const Tensor& directions, const Tensor& algebra,
                                         const Tensor& rank, const Tensor& x, double scale) {
  const ProductShape shape = check_product(directions, "directions", rank, x);
  check_finite(scale, "scale");
  check_table(algebra, "algebra", ScalarType::Double,
              {shape.batch, shape.capacity, shape.capacity + 2});
  check_readable({{"algebra", &algebra}});
  return shape;
}

inline ProductShape check_low_rank_matvec(const Tensor& u, const Tensor& v, const Tensor& rank,
                                          const Tensor& x, double scale) {
  const ProductShape shape = check_product(v, "v", rank, x);
  check_rows(u, "u", {shape.batch, shape.capacity, shape.dim});
  check_dtype(u, "u", v.scalar_type());
  check_finite(scale, "scale");
  check_readable({{"u", &u}});
  return shape;
}

inline ProductShape check_low_rank_dots(const Tensor& rows, const Tensor& count, const Tensor& x) {
  return check_product(rows, "rows", count, x, "count");
}

inline ProductShape check_low_rank_combine(const Tensor& rows, const Tensor& count,
                                           const Tensor& coefficients, const Tensor& x,
                                           double scale) {
  const ProductShape shape = check_low_rank_dots(rows, count, x);
  check_finite(scale, "scale");
  check_table(coefficients, "coefficients", ScalarType::Double,
              {shape.batch, shape.columns, shape.capacity});
  check_readable({{"coefficients", &coefficients}});
  return shape;
}

inline ProductShape check_low_rank_project_out(const Tensor& rows, const Tensor& count,
                                               const Tensor& x) {
  const ProductShape shape = check_low_rank_dots(rows, count, x);
  Memory memory;
  memory.writes("x", x);
  memory.reads("rows", rows);
  memory.reads("count", count);
  return shape;
}

struct AppendShape {
  int64_t batch;
  int64_t capacity;
  int64_t dim;
};

inline AppendShape check_low_rank_append(const Tensor& u, const Tensor& v, const Tensor& rank,
                                         const Tensor& s, const Tensor& y, double scale) {
  STD_TORCH_CHECK(s.dim() == 2, "s must be [batch, dim], got ", s.dim(), " dimensions");
  STD_TORCH_CHECK(u.dim() == 3, "u must be [batch, history_length, dim], got ", u.dim(),
                  " dimensions");
  const AppendShape shape = {s.size(0), u.size(1), s.size(1)};
  check_contiguous(s, "s");
  check_table(y, "y", s.scalar_type(), {shape.batch, shape.dim});
  check_rows(u, "u", {shape.batch, shape.capacity, shape.dim});
  check_rows(v, "v", {shape.batch, shape.capacity, shape.dim});
  check_dtype(v, "v", u.scalar_type());
  check_table(rank, "rank", ScalarType::Long, {shape.batch});
  check_finite(scale, "scale");
  Memory memory;
  memory.writes_rows("u", u);
  memory.writes_rows("v", v);
  memory.writes("rank", rank);
  memory.reads("s", s);
  memory.reads("y", y);
  return shape;
}

struct CellsShape {
  int64_t rows;
  int64_t dim;
  int64_t samples;
  int64_t entries;  // of S; 0 without
  int64_t max_steps;
};

// The most elements of a row of a cell: the bytes of its weight are counted in 64 bits.
constexpr int64_t kMostCellDim = int64_t(1) << 28;

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
  STD_TORCH_CHECK(shape.dim <= kMostCellDim, "z must have rows of at most ", kMostCellDim,
                  " elements, got ", shape.dim);
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
  Memory memory;
  memory.writes("z", z);
  memory.writes("record", record);
  memory.writes("counters", counters);
  memory.writes("active", active);
  memory.reads("weight", weight);
  memory.reads("bias", bias);
  for (const auto& [name, tensor] :
       {std::pair{"crow", &crow}, std::pair{"col", &col}, std::pair{"values", &values},
        std::pair{"sample_ptr", &sample_ptr}, std::pair{"scale", &scale}}) {
    if (*tensor) {
      memory.reads(name, **tensor);
    }
  }
  STD_TORCH_CHECK(0 <= activation && activation < kActivations, "activation must be 0 to ",
                  kActivations - 1, ", got ", activation);
  STD_TORCH_CHECK(0 <= norm && norm < kNormKinds, "norm must be 0 to ", kNormKinds - 1, ", got ",
                  norm);
  STD_TORCH_CHECK(!(fixed_steps && accelerate), "fixed_steps are damped steps; got accelerate too");
  return shape;
}

}  // namespace deq
