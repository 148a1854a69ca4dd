// The Python module deq_kernels._build: what the native code was built from, and how it would cut
// a problem. Nothing here touches a tensor, so the libraries beside it stay free of Python symbols.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "algebra/plan.h"

namespace py = pybind11;

namespace {

py::dict build_facts() {
  py::dict facts;
  facts["compiler"] = DEQ_COMPILER;
  facts["build_type"] = DEQ_BUILD_TYPE;
  facts["torch_target"] = DEQ_TORCH_TARGET;
  facts["torch_built_against"] = DEQ_TORCH_VERSION;
  facts["isas"] = DEQ_ISA_LIST;
  return facts;
}

void require_at_least(const char* name, int64_t value, int64_t minimum) {
  if (value < minimum) {
    throw py::value_error(std::string("plan_stream: ") + name + " must be at least " +
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

}  // namespace

PYBIND11_MODULE(_build, module) {
  module.doc() = "Build facts of the native libraries, and their launch planner.";
  module.def("build_facts", &build_facts,
             "Return the compiler, the build type, the oldest torch that the libraries run on, the "
             "torch that they were built against and the instruction sets that they hold.");
  module.def("plan_stream", &plan_stream, py::kw_only(), py::arg("batch"), py::arg("dim"),
             py::arg("rank"), py::arg("state_bytes"), py::arg("history_bytes"), py::arg("threads"),
             "Return how a step over [batch, dim] states with `rank` stored directions is cut: the "
             "regime, the tile in elements, the tiles per sample and the bytes moved at least.");
}
