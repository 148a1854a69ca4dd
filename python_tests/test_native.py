"""What the package says about its native code, and what it refuses."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deq_kernels
from deq_kernels import _native
from deq_kernels.commands import info
from deq_kernels.ops.tiles import TILE, tile_count

needs_native = pytest.mark.skipif(
    not (_native.PACKAGE_DIR / _native.LIBRARY_NAME).exists(),
    reason="this installation was built without a C++ compiler",
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


def _load_again() -> _native.CpuLibrary:
    return _native.load.__wrapped__()


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
    assert report.cpu_library == str(_native.PACKAGE_DIR / _native.LIBRARY_NAME)
    assert report.cpu_library_absent is None
    assert report.native_ops
    assert report.reference_ops == ()


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


def test_reference_backend_leaves_the_library_alone() -> None:
    program = "import deq_kernels as dk; print(dk.backend_info())"
    text = _run_python(program, DEQ_KERNELS_BACKEND="reference")
    assert "absent: DEQ_KERNELS_BACKEND=reference" in text
    assert "native ops     none" in text


def test_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEQ_KERNELS_BACKEND", "fast")
    with pytest.raises(ValueError, match="must be auto, native or reference, but is 'fast'"):
        _load_again()


def test_broken_library_is_an_error(empty_package: Path) -> None:
    library = empty_package / _native.LIBRARY_NAME
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
    assert _load_again() == _native.CpuLibrary(None, "no compiler; install one")


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
        _native.plan_stream(batch=1, dim=1, rank=0)


@needs_module
def test_plan_counts_tiles_and_bytes() -> None:
    batch, dim, rank = 3, 5000, 7
    plan = _native.plan_stream(batch=batch, dim=dim, rank=rank, element_bytes=4)
    assert (plan["tile"], plan["tiles"]) == (TILE, tile_count(dim))
    assert plan["bytes_moved"] == 4 * batch * (2 * rank + 6) * dim


@needs_module
def test_plan_follows_the_number_of_threads(set_threads) -> None:
    set_threads(1)
    assert _native.plan_stream(batch=64, dim=100_000, rank=10)["regime"] == "serial"
    set_threads(2)
    assert _native.plan_stream(batch=64, dim=100_000, rank=10)["regime"] != "serial"


@needs_module
@pytest.mark.parametrize("bad", [{"batch": 0}, {"dim": 0}, {"rank": -1}, {"element_bytes": 0}])
def test_plan_refuses_impossible_sizes(bad: dict[str, int]) -> None:
    sizes = {"batch": 2, "dim": 3, "rank": 1, **bad}
    with pytest.raises(ValueError, match="must be at least"):
        _native.plan_stream(**sizes)


@needs_module
def test_info_command_prints_the_report_and_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    info.add_parser(parser.add_subparsers())
    args = parser.parse_args(["info", "--plan", "2", "4096", "5"])
    assert info.run(args) == 0
    assert str(deq_kernels.backend_info()) in capsys.readouterr().out

    args = parser.parse_args(["info", "--json", "--plan", "2", "4096", "5"])
    assert info.run(args) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["plan"] == _native.plan_stream(batch=2, dim=4096, rank=5)
    assert printed["native_ops"] == list(deq_kernels.backend_info().native_ops)


@needs_module
def test_info_command_refuses_an_impossible_plan(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert info.run(argparse.Namespace(json=False, plan=(1, 0, 1))) == 1
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
