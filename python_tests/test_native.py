"""What the package says about its native code, and what it refuses."""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import deq_kernels
from deq_kernels import _launches, _native, info
from deq_kernels.ops import OPS, backends
from deq_kernels.ops.tiles import TILES, tile_count


def _build_module() -> object:
    found = importlib.util.find_spec("deq_kernels._build") is not None
    return importlib.import_module("deq_kernels._build") if found else None


needs_native = pytest.mark.skipif(
    not (_native.PACKAGE_DIR / _native.CPU_LIBRARY).exists(),
    reason="this installation was built without a C++ compiler",
)
needs_launch_planner = pytest.mark.skipif(
    not hasattr(_build_module(), "plan_launch"),
    reason="this installation was built without the launch planner",
)
needs_module = pytest.mark.skipif(
    importlib.util.find_spec("deq_kernels._build") is None,
    reason="this installation was built without a C++ compiler or Python's C headers",
)


@pytest.fixture
def empty_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let _native look for binaries in an empty folder, whatever the environment asks for."""
    monkeypatch.delenv("DEQ_KERNELS_BACKEND", raising=False)
    monkeypatch.setattr(_native, "PACKAGE_DIR", tmp_path)
    (tmp_path / "lib").mkdir()
    return tmp_path


@pytest.fixture
def gpu_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let _native believe that torch sees a GPU."""
    monkeypatch.setattr(_native, "why_no_cuda", lambda: None)


def _load_again() -> _native.Library:
    return _native.load_cpu.__wrapped__()


def _load_cuda_again() -> _native.Library:
    return _native.load_cuda.__wrapped__()


def _run_python(program: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, **environ},
    )
    return done.stdout


@needs_native
def test_every_op_holds_its_native_kernel() -> None:
    report = deq_kernels.backend_info()
    assert report.cpu_library == str(_native.PACKAGE_DIR / _native.CPU_LIBRARY)
    assert report.cpu_library_absent is None
    assert report.native_ops
    assert report.reference_ops == ()


@pytest.mark.skipif(
    _native.load_cuda().path is None, reason=f"no CUDA library: {_native.load_cuda().absent}"
)
def test_every_op_holds_its_cuda_kernel() -> None:
    report = deq_kernels.backend_info()
    assert report.cuda_library == str(_native.PACKAGE_DIR / _native.CUDA_LIBRARY)
    # The memory of histories on a GPU is torch's own.
    assert set(report.cuda_ops) >= set(OPS) - {"history_memory"}
    assert report.cuda_backend == "native"


@needs_native
@needs_module
def test_build_facts_fit_the_running_torch_and_processor() -> None:
    report = deq_kernels.backend_info()
    assert report.build is not None
    assert report.active_isa in report.build["isas"].split(",")
    assert report.build["build_type"] == "Release"
    assert report.torch_version == torch.__version__
    assert report.torch_threads == torch.get_num_threads()


def test_report_reads_well_and_is_json() -> None:
    report = deq_kernels.backend_info()
    text = str(report)
    for part in (deq_kernels.__version__, torch.__version__, *report.native_ops):
        assert part in text
    assert json.loads(json.dumps(report.as_dict()))["version"] == deq_kernels.__version__


@pytest.mark.parametrize("version", ["3.6.0", None])
def test_report_says_what_triton_leaves_to_the_reference(
    version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "triton_version", lambda: version)
    report = deq_kernels.backend_info()
    assert ("graph cells take the PyTorch reference" in str(report)) == (version is not None)
    assert report.triton_limits
    assert {limit.partition(":")[0] for limit in report.triton_limits} <= set(OPS)


def test_reference_backend_leaves_the_library_alone() -> None:
    program = "import deq_kernels as dk; print(dk.backend_info())"
    text = _run_python(program, DEQ_KERNELS_BACKEND="reference")
    assert text.count("absent: DEQ_KERNELS_BACKEND=reference") == 2
    assert "native ops     none" in text
    assert "CUDA ops       none" in text


def test_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEQ_KERNELS_BACKEND", "fast")
    with pytest.raises(ValueError, match="one of auto, native, triton, reference, but is 'fast'"):
        _load_again()


def test_broken_library_is_an_error(empty_package: Path) -> None:
    library = empty_package / _native.CPU_LIBRARY
    library.write_bytes(b"not a library")
    with pytest.raises(ImportError, match=r"must load with the torch in use") as caught:
        _load_again()
    message = str(caught.value)
    assert str(library) in message
    assert torch.__version__ in message
    assert "Build it again" in message


def test_demanded_library_that_is_absent_is_an_error(
    empty_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEQ_KERNELS_BACKEND", "native")
    with pytest.raises(ImportError, match="demands the native CPU library"):
        _load_again()


def test_absence_gives_the_reason_that_the_build_recorded(empty_package: Path) -> None:
    absent = {"deq_kernels.lib.libdeq_kernels_cpu": "no compiler; install one"}
    (empty_package / "_build_record.json").write_text(json.dumps({"absent": absent}))
    assert _load_again() == _native.Library(None, "no compiler; install one")


@pytest.mark.usefixtures("gpu_promised")
def test_broken_cuda_library_is_an_error_with_the_cure(
    empty_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"cuda_compiler": "nvcc 12.8.93"}
    monkeypatch.setattr(_native, "build_facts", lambda: (facts, None))
    library = empty_package / _native.CUDA_LIBRARY
    library.write_bytes(b"not a library")
    with pytest.raises(ImportError, match=r"must load with the torch in use") as caught:
        _load_cuda_again()
    message = str(caught.value)
    for part in (
        str(library),
        torch.__version__,
        f"for CUDA {torch.version.cuda}",
        "the CUDA runtime the library was built for (nvcc 12.8.93)",
        "build the library again",
        "DEQ_KERNELS_BACKEND=triton",
        "DEQ_KERNELS_BACKEND=reference",
    ):
        assert part in message


def test_a_cuda_library_is_left_alone_without_a_gpu(
    empty_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where it is demanded: there are no CUDA tensors for it."""
    (empty_package / _native.CUDA_LIBRARY).write_bytes(b"not a library")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for wanted in ("auto", "native"):
        monkeypatch.setenv("DEQ_KERNELS_BACKEND", wanted)
        assert "sees no CUDA device" in str(_load_cuda_again().absent)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in str(_load_cuda_again().absent)


@pytest.mark.usefixtures("gpu_promised")
def test_an_absent_cuda_library_gives_its_reason(
    empty_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = {"deq_kernels.lib.libdeq_kernels_cuda": "no nvcc; install the CUDA toolkit"}
    (empty_package / "_build_record.json").write_text(json.dumps({"absent": absent}))
    assert _load_cuda_again() == _native.Library(None, "no nvcc; install the CUDA toolkit")
    monkeypatch.setenv("DEQ_KERNELS_BACKEND", "native")
    with pytest.raises(ImportError, match="native CUDA library, but no nvcc; install"):
        _load_cuda_again()


@pytest.mark.usefixtures("gpu_promised")
@pytest.mark.parametrize("wanted", ["triton", "reference"])
def test_another_backend_leaves_a_broken_cuda_library_alone(
    empty_package: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    (empty_package / _native.CUDA_LIBRARY).write_bytes(b"not a library")
    monkeypatch.setenv("DEQ_KERNELS_BACKEND", wanted)
    assert f"DEQ_KERNELS_BACKEND={wanted} leaves it alone" in str(_load_cuda_again().absent)


def test_a_regime_is_forced_in_the_cuda_library_and_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    class FakeLibrary:
        def __init__(self, path: str) -> None:
            assert path == "cuda.so"

        @property
        def deq_kernels_force_regime(self) -> Callable[[bytes], int]:
            def force(name: bytes) -> int:
                asked.append(name.decode())
                return -1 if name == b"grid" else 0

            return force

    monkeypatch.setattr(_native, "load_cuda", lambda: _native.Library(Path("cuda.so"), None))
    monkeypatch.setattr(ctypes, "CDLL", FakeLibrary)
    with _launches.force_regime("block"):
        with pytest.raises(KeyError), _launches.force_regime("cluster"):
            raise KeyError
        assert asked == ["block", "cluster", "block"]
    assert asked[-1] == ""
    with pytest.raises(ValueError, match="one of block, cluster, grid; got 'warp'"):
        _launches.force_regime("warp").__enter__()
    with pytest.raises(RuntimeError, match="does not know the regime 'grid'"):
        _launches.force_regime("grid").__enter__()


def test_a_regime_cannot_be_forced_without_a_cuda_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_native, "load_cuda", lambda: _native.Library(None, "no nvcc"))
    with pytest.raises(RuntimeError, match=r"needs the native CUDA library, .* but no nvcc"):
        _launches.force_regime("block").__enter__()


def test_source_tree_that_was_never_built_says_so(empty_package: Path) -> None:
    library = _load_again()
    assert library.path is None
    assert library.absent is not None
    assert "pip install --no-build-isolation -e ." in library.absent


def test_module_for_another_python_is_named(
    empty_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_package / "_build.cpython-39-x86_64-linux-gnu.so").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"another Python \(_build\.cpython-39"):
        _launches.plan_stream(batch=1, dim=1, rank=0)


@needs_module
def test_plan_counts_tiles_and_bytes() -> None:
    batch, dim, rank = 3, 5000, 7
    plan = _launches.plan_stream(batch=batch, dim=dim, rank=rank, element_bytes=4)
    assert (plan["tile"], plan["tiles"]) == (TILES["cpu"], tile_count(dim, "cpu"))
    assert plan["bytes_moved"] == 4 * batch * (2 * rank + 6) * dim


@needs_module
def test_plan_follows_the_number_of_threads(set_threads) -> None:
    set_threads(1)
    assert _launches.plan_stream(batch=64, dim=100_000, rank=10)["regime"] == "serial"
    set_threads(2)
    assert _launches.plan_stream(batch=64, dim=100_000, rank=10)["regime"] != "serial"


@needs_launch_planner
def test_launch_plan_of_an_h200() -> None:
    batch, dim, rank = 32, 61_440, 18
    plan = _launches.plan_launch(batch=batch, dim=dim, rank=rank, gpu=_launches.Gpu())
    assert plan["regime"] in _launches.REGIMES
    assert (plan["tile"], plan["tiles"]) == (TILES["cuda"], tile_count(dim, "cuda"))
    assert plan["shared_bytes"] <= _launches.Gpu().shared_bytes
    small = _launches.plan_launch(batch=32, dim=1000, rank=rank, gpu=_launches.Gpu())
    assert small["regime"] == "block"
    assert small["launches"] == 1


@needs_launch_planner
def test_launch_plan_follows_the_device() -> None:
    """Without clusters nothing is launched as one."""
    sizes = {"batch": 4, "dim": 30_000, "rank": 20}
    plan = _launches.plan_launch(**sizes, gpu=_launches.Gpu("any", 100, 100_000, max_cluster=1))
    assert plan["cluster"] == 1
    if _launches.present_gpu() is None:
        assert _launches.plan_launch(**sizes) == _launches.plan_launch(**sizes, gpu=_launches.Gpu())


@needs_module
@pytest.mark.parametrize("bad", [{"batch": 0}, {"dim": 0}, {"rank": -1}, {"element_bytes": 0}])
def test_plan_refuses_impossible_sizes(bad: dict[str, int]) -> None:
    sizes = {"batch": 2, "dim": 3, "rank": 1, **bad}
    with pytest.raises(ValueError, match="must be at least"):
        _launches.plan_stream(**sizes)


@needs_launch_planner
def test_info_command_prints_the_report_and_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    info.add_parser(parser.add_subparsers())
    args = parser.parse_args(["info", "--plan", "2", "4096", "5"])
    assert info.run(args) == 0
    text = capsys.readouterr().out
    assert str(deq_kernels.backend_info()) in text
    assert "one step at batch 2, dim 4096, rank 5, float32, on the CPU:" in text
    assert "one step at batch 2, dim 4096, rank 5, float32, on NVIDIA" in text

    args = parser.parse_args(["info", "--json", "--plan", "2", "4096", "5"])
    assert info.run(args) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["plan"] == _launches.plan_stream(batch=2, dim=4096, rank=5)
    gpu = _launches.present_gpu() or _launches.Gpu()
    launch = _launches.plan_launch(batch=2, dim=4096, rank=5, gpu=gpu)
    assert printed["launch"] == {"device": gpu.name, **launch}
    assert printed["native_ops"] == list(deq_kernels.backend_info().native_ops)


@needs_launch_planner
def test_cell_plan_of_an_h200() -> None:
    h200 = _launches.Gpu()
    small = _launches.plan_cells(samples=128, nodes=40, dim=64, gpu=h200)
    assert (small["regime"], small["blocks"], small["cluster"]) == ("block", 128, 1)
    assert small["weight_on_chip"]
    assert small["rows_on_chip"] >= 40
    large = _launches.plan_cells(samples=1, nodes=2000, dim=256, gpu=h200)
    assert (large["regime"], large["weight_on_chip"]) == ("grid", False)
    few = _launches.plan_cells(samples=8, nodes=256, dim=64, gpu=h200)
    assert (few["regime"], few["cluster"], few["blocks"]) == ("cluster", 16, 128)
    dense = _launches.plan_cells(samples=1000, nodes=None, dim=64, gpu=h200)
    assert (dense["regime"], dense["rows_at_a_time"], dense["blocks"]) == ("block", 4, 250)
    for plan in (small, large, few, dense):
        assert plan["launches"] == 1
        assert 0 < plan["shared_bytes"] <= h200.shared_bytes
    # Rows that find no room on chip, with slots for as many as a step needs.
    accelerated = _launches.plan_cells(samples=1, nodes=2000, dim=256, gpu=h200)
    damped = _launches.plan_cells(samples=1, nodes=2000, dim=256, accelerate=False, gpu=h200)
    slots = [plan["scratch_bytes"] // (4 * 2000 * 256) for plan in (accelerated, damped)]
    assert slots == [6, 3]


@needs_launch_planner
def test_cell_plan_follows_the_device_and_the_dtype() -> None:
    sizes: dict[str, Any] = {"samples": 8, "nodes": 256, "dim": 64}
    no_clusters = _launches.Gpu("any", 100, 100_000, max_cluster=1)
    assert _launches.plan_cells(**sizes, gpu=no_clusters)["cluster"] == 1
    if _launches.present_gpu() is None:
        assert _launches.plan_cells(**sizes) == _launches.plan_cells(**sizes, gpu=_launches.Gpu())
    halves, doubles = (
        _launches.plan_cells(**{**sizes, "dim": 220}, element_bytes=size) for size in (2, 8)
    )
    assert (halves["weight_on_chip"], doubles["weight_on_chip"]) == (True, False)


@needs_launch_planner
@pytest.mark.parametrize(
    "bad", [{"samples": 0}, {"nodes": -1}, {"dim": 0}, {"element_bytes": 1}], ids=str
)
def test_cell_plan_refuses_impossible_sizes(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        _launches.plan_cells(**{"samples": 2, "nodes": 3, "dim": 4, **bad})


@needs_launch_planner
def test_info_command_prints_the_plans_of_cells(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    info.add_parser(parser.add_subparsers())
    wanted = ["--plan-graphs", "128", "40", "64", "--plan-dense", "1000", "32"]
    assert info.run(parser.parse_args(["info", *wanted])) == 0
    text = capsys.readouterr().out
    assert "a graph cell over 128 graph(s) of 40 nodes, 64 features, float32, on NVIDIA" in text
    assert "a dense cell at batch 1000, dim 32, float32, on NVIDIA" in text
    assert "one step" not in text

    assert info.run(parser.parse_args(["info", "--json", *wanted])) == 0
    printed = json.loads(capsys.readouterr().out)
    gpu = _launches.present_gpu() or _launches.Gpu()
    graphs = _launches.plan_cells(samples=128, nodes=40, dim=64, gpu=gpu)
    assert printed["graph_cell"] == {"device": gpu.name, **graphs}
    dense = _launches.plan_cells(samples=1000, nodes=None, dim=32, gpu=gpu)
    assert printed["dense_cell"] == {"device": gpu.name, **dense}
    assert "plan" not in printed


@needs_module
@pytest.mark.parametrize(
    "wanted",
    [["--plan", "1", "0", "1"], ["--plan-graphs", "1", "1", "0"], ["--plan-dense", "1", "0"]],
    ids=lambda wanted: wanted[0],
)
def test_info_command_refuses_an_impossible_plan(
    wanted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    info.add_parser(parser.add_subparsers())
    assert info.run(parser.parse_args(["info", *wanted])) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "dim must be at least 1" in printed.err


@needs_native
def test_the_instruction_set_can_be_lowered_and_is_checked() -> None:
    program = "import deq_kernels; print(deq_kernels.backend_info().active_isa)"
    assert _run_python(program, DEQ_KERNELS_CPU_ISA="baseline").strip() == "baseline"
    program = """
try:
    import deq_kernels
except ValueError as error:
    print(error)
"""
    assert "but is 'sse9'" in _run_python(program, DEQ_KERNELS_CPU_ISA="sse9")
