// The Python module deq_kernels._build: what the native code was built from, and how it would cut
// a problem. Nothing here touches a tensor, so the libraries beside it stay free of Python symbols.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "cpu/plan.h"
#include "cuda/cells/plan.h"
#include "cuda/plan.h"

namespace py = pybind11;

namespace {

py::object text_or_none(const std::string& text) {
  return text.empty() ? py::object(py::none()) : py::object(py::str(text));
}

py::dict build_facts() {
  py::dict facts;
  facts["compiler"] = DEQ_COMPILER;
  facts["build_type"] = DEQ_BUILD_TYPE;
  facts["torch_target"] = DEQ_TORCH_TARGET;
  facts["torch_built_against"] = DEQ_TORCH_VERSION;
  facts["isas"] = DEQ_ISA_LIST;
  facts["cuda_compiler"] = text_or_none(DEQ_CUDA_COMPILER);
  facts["cuda_archs"] = text_or_none(DEQ_CUDA_ARCHS);
  return facts;
}

void require_at_least(const char* name, int64_t value, int64_t minimum) {
  if (value < minimum) {
    throw py::value_error(std::string("a plan's ") + name + " must be at least " +
                          std::to_string(minimum) + ", but is " + std::to_string(value));
  }
}

py::dict plan_stream(int64_t batch, int64_t dim, int64_t rank, int64_t state_bytes,
                     int64_t history_bytes, int64_t threads) {
  require_at_least("batch", batch, 1);
  require_at_least("dim", dim, 1);
  require_at_least("rank", rank, 0);
  require_at_least("state_bytes", state_bytes, 1);
  require_at_least("history_bytes", history_bytes, 1);
  require_at_least("threads", threads, 1);
  const deq::StreamPlan plan =
      deq::plan_stream(batch, dim, rank, state_bytes, history_bytes, threads);
  py::dict result;
  result["regime"] = deq::regime_name(plan.regime);
  result["tile"] = plan.tile;
  result["tiles"] = plan.tiles;
  result["bytes_moved"] = plan.bytes_moved;
  return result;
}

py::dict plan_launch(int64_t batch, int64_t dim, int64_t capacity, int64_t state_bytes,
                     int64_t history_bytes, int64_t multiprocessors, int64_t shared_bytes,
                     int64_t max_cluster) {
  require_at_least("batch", batch, 1);
  require_at_least("dim", dim, 1);
  require_at_least("capacity", capacity, 1);
  require_at_least("state_bytes", state_bytes, 2);
  require_at_least("history_bytes", history_bytes, 2);
  require_at_least("multiprocessors", multiprocessors, 1);
  require_at_least("shared_bytes", shared_bytes, 1);
  require_at_least("max_cluster", max_cluster, 1);
  const deq::GpuPlan plan =
      deq::plan_gpu(deq::broyden_step_demand(batch, dim, capacity, history_bytes),
                    {multiprocessors, shared_bytes, max_cluster});
  // The last step before the history is full; rows that stay on chip are read once.
  const int64_t stored = capacity - 1;
  const int64_t rows_read = 2 * stored - std::min(stored, plan.kept_rows);
  py::dict result;
  result["regime"] = deq::regime_name(plan.regime);
  result["cluster"] = plan.cluster;
  result["tile"] = deq::kGpuTile;
  result["tiles"] = plan.tiles;
  result["kept_rows"] = plan.kept_rows;
  result["shared_bytes"] = plan.shared.bytes;
  result["launches"] = plan.launches;
  result["bytes_moved"] = batch * dim * (rows_read * history_bytes + 6 * state_bytes);
  return result;
}

py::dict plan_cells(int64_t samples, int64_t rows, int64_t dim, bool grouped, bool accelerate,
                    int64_t state_bytes, int64_t accum_bytes, int64_t multiprocessors,
                    int64_t shared_bytes, int64_t max_cluster) {
  require_at_least("samples", samples, 1);
  require_at_least("rows", rows, 0);
  require_at_least("dim", dim, 1);
  require_at_least("state_bytes", state_bytes, 2);
  require_at_least("accum_bytes", accum_bytes, 4);
  require_at_least("multiprocessors", multiprocessors, 1);
  require_at_least("shared_bytes", shared_bytes, 1);
  require_at_least("max_cluster", max_cluster, 1);
  const deq::CellPlan plan =
      deq::plan_cells({samples * rows, dim, samples, grouped, accelerate, state_bytes, accum_bytes},
                      {multiprocessors, shared_bytes, max_cluster});
  py::dict result;
  result["regime"] = deq::regime_name(plan.regime);
  result["blocks"] = plan.blocks;
  result["cluster"] = plan.cluster;
  result["rows_at_a_time"] = plan.pass_rows;
  result["weight_on_chip"] = plan.resident;
  result["rows_on_chip"] = plan.kept_rows;
  result["shared_bytes"] = plan.shared.bytes;
  result["scratch_bytes"] = plan.row_scratch * accum_bytes + plan.sum_scratch * 8;
  result["launches"] = 1;
  return result;
}

}  // namespace

PYBIND11_MODULE(_build, module) {
  module.doc() = "Build facts of the native libraries, and their launch planner.";
  module.def(
      "build_facts", &build_facts,
      "Return the compilers, the build type, the oldest torch that the libraries run on, the "
      "torch that they were built against, the instruction sets of the CPU library and the "
      "architectures of the CUDA library (None where it was not built).");
  module.def("plan_stream", &plan_stream, py::kw_only(), py::arg("batch"), py::arg("dim"),
             py::arg("rank"), py::arg("state_bytes"), py::arg("history_bytes"), py::arg("threads"),
             "Return how a step over [batch, dim] states with `rank` stored directions is cut: the "
             "regime, the tile in elements, the tiles per sample and the bytes moved at least.");
  module.def("plan_launch", &plan_launch, py::kw_only(), py::arg("batch"), py::arg("dim"),
             py::arg("capacity"), py::arg("state_bytes"), py::arg("history_bytes"),
             py::arg("multiprocessors"), py::arg("shared_bytes"), py::arg("max_cluster"),
             "Return how a GPU launches a step over [batch, dim] states with room for `capacity` "
             "directions: the regime, the blocks per sample, the tile in elements, the tiles per "
             "sample, the directions that stay on chip between the passes, the shared memory of a "
             "block, the launches, and the bytes that the step moves at least once the history is "
             "nearly full.");
  module.def(
      "plan_cells", &plan_cells, py::kw_only(), py::arg("samples"), py::arg("rows"), py::arg("dim"),
      py::arg("grouped"), py::arg("accelerate"), py::arg("state_bytes"), py::arg("accum_bytes"),
      py::arg("multiprocessors"), py::arg("shared_bytes"), py::arg("max_cluster"),
      "Return how a GPU launches the solve of a structured cell over `samples` graphs of `rows` "
      "nodes, or, not `grouped`, over samples of one row: the regime, the blocks, those per "
      "cluster, the rows that a block takes at a time, whether the weight stays on chip, the rows "
      "of a sample that a block has room for on chip, its shared memory, the bytes of scratch, "
      "and the launches.");
}
