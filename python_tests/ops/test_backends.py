"""Which kernels serve an op, and how that is switched."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels import _native
from deq_kernels.ops import OPS, backends, low_rank
from python_tests.cells.solves import solve_dense

HAS_TRITON = importlib.util.find_spec("triton") is not None
# The memory of histories on a GPU is torch's own.
WITHOUT_GPU_KERNEL = {"history_memory"}
WITH_GPU_KERNEL = sorted(set(OPS) - WITHOUT_GPU_KERNEL)


class Calls(list[str]):
    """The names of the ops that a counting stand-in for Triton was called for."""

    def of(self, name: str) -> Any:
        def kernel(*args: Any) -> Any:
            self.append(name)
            return OPS[name].reference(*args)

        return kernel


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stand-ins for Triton's kernels, at the CPU key as where Triton interprets."""
    made = Calls()
    functions = {name: made.of(name) for name in WITH_GPU_KERNEL}
    kernels = backends.TritonKernels(functions, ("CPU",))
    monkeypatch.setattr(backends, "triton_kernels", lambda: kernels)
    return made


@pytest.fixture
def other_switch(monkeypatch: pytest.MonkeyPatch) -> Iterator[backends._Switch]:
    """A switch of the test's own, turned back in the end."""
    switch = backends._Switch()
    monkeypatch.setattr(backends, "_SWITCH", switch)
    yield switch
    switch.standing_keys = ()
    switch.turn("native")


def product() -> Tensor:
    """One op with its gradient."""
    u, v = (torch.linspace(-1, 1, 24).view(2, 3, 4).double() for _ in range(2))
    x = torch.ones(2, 1, 4, dtype=torch.float64, requires_grad=True)
    low_rank.matvec(u, v, torch.tensor([3, 1]), x).sum().backward()
    assert x.grad is not None
    return x.grad


def test_triton_serves_the_op_and_its_gradient_while_it_is_wanted(calls: Calls) -> None:
    expected = product()
    for _ in range(2):
        with dk.use_backend("triton"):
            torch.testing.assert_close(product(), expected)
        assert calls == ["low_rank_matvec", "low_rank_matvec"]
        product()
        assert calls == ["low_rank_matvec", "low_rank_matvec"]
        calls.clear()


def test_every_op_with_a_gpu_kernel_is_routed(calls: Calls) -> None:
    with dk.use_backend("triton"):
        z0 = torch.zeros(2, 5)
        solution = dk.Broyden(max_steps=3, rtol=0.0)(lambda z: 0.5 * z + 1.0, z0)
        solution.inverse_jacobian.matvec(z0)
        dk.Anderson(max_steps=3, rtol=0.0)(lambda z: 0.5 * z + 1.0, z0)
        dk.FixedPoint(max_steps=3, rtol=0.0)(lambda z: 0.5 * z + 1.0, z0)
        scale = torch.tensor(0.5, requires_grad=True)
        dk.DEQ(lambda z: scale * z + 1.0, gradient=dk.Neumann(steps=2))(z0).sum().backward()
        inverse = dk.LowRankInverse.empty(2, 2, 5)
        inverse.append_(torch.ones(2, 5), -torch.ones(2, 5))
        inverse.matvec(z0)
        dk.GMRES(max_steps=4, rtol=0.0)(lambda z: 0.5 * z + 1.0, z0)
        dk.LBFGS(max_steps=3, rtol=0.0)(lambda z: 0.5 * z + 1.0, z0)
        one = torch.ones(2, dtype=torch.int64)
        low_rank.project_out_(torch.eye(5)[:2].expand(2, 2, 5), one, torch.ones(2, 1, 5))
        solve_dense(torch.ones(2, 5), torch.zeros(5, 5), activation="relu")
    assert sorted(set(calls)) == WITH_GPU_KERNEL


def test_blocks_nest_and_survive_errors(calls: Calls) -> None:
    with dk.use_backend("triton"):
        with dk.use_backend("native"):
            product()
            with dk.use_backend("reference"):
                product()
            assert calls == []
            with pytest.raises(KeyError), dk.use_backend("triton"):
                raise KeyError
            product()
        assert calls == []
        with dk.use_backend("triton"):
            product()
        product()
        assert len(calls) == 4
    product()
    assert len(calls) == 4


def test_compiled_functions_follow_the_backend(calls: Calls) -> None:
    """torch.compile keeps the op, not the kernel it was traced with."""

    @torch.compile(fullgraph=True, backend="aot_eager")
    def doubled(u: Tensor, rank: Tensor, x: Tensor) -> Tensor:
        return 2.0 * low_rank.matvec(u, u, rank, x)

    u, rank, x = torch.randn(2, 3, 4), torch.tensor([3, 1]), torch.randn(2, 1, 4)
    expected = doubled(u, rank, x)
    assert calls == []
    with dk.use_backend("triton"):
        torch.testing.assert_close(doubled(u, rank, x), expected)
        assert calls == ["low_rank_matvec"]
    assert torch.equal(doubled(u, rank, x), expected)
    assert calls == ["low_rank_matvec"]


def test_opcheck_passes_on_a_routed_op(calls: Calls) -> None:
    u, v = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    x = torch.randn(2, 1, 4, requires_grad=True)
    with dk.use_backend("triton"):
        torch.library.opcheck(
            OPS["low_rank_matvec"].overload, (u, v, torch.tensor([3, 1]), x, -1.0)
        )
    assert calls


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="one of native, triton, reference; got 'cuda'"):
        dk.use_backend("cuda").__enter__()


def test_absent_triton_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "triton_version", lambda: None)
    monkeypatch.setattr(backends, "triton_kernels", backends.triton_kernels.__wrapped__)
    with pytest.raises(ImportError, match=r"needs Triton, which is absent\. Install it with"):
        dk.use_backend("triton").__enter__()
    assert torch.isfinite(product()).all()


def test_broken_triton_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("undefined symbol: of_another_torch")

    monkeypatch.setattr(backends, "triton_version", lambda: "3.6.0")
    monkeypatch.setattr(backends, "triton_kernels", backends.triton_kernels.__wrapped__)
    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ImportError, match=r"Triton 3\.6\.0 failed:\n.*of_another_torch"):
        dk.use_backend("triton").__enter__()


def test_triton_without_gpu_and_interpreter_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels = backends.TritonKernels({}, ())
    monkeypatch.setattr(backends, "triton_kernels", lambda: kernels)
    monkeypatch.setattr(_native, "why_no_cuda", lambda: "there is none")
    with pytest.raises(RuntimeError, match=r"needs a GPU, but there is none.*TRITON_INTERPRET=1"):
        dk.use_backend("triton").__enter__()


@pytest.fixture
def no_cuda_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, on which no CUDA library was built."""
    monkeypatch.delenv("DEQ_KERNELS_BACKEND", raising=False)
    monkeypatch.setattr(_native, "why_no_cuda", lambda: None)
    monkeypatch.setattr(_native, "load_cuda", lambda: _native.Library(None, "no nvcc"))


def cuda_ops() -> list[str]:
    return sorted(name for name, op in OPS.items() if op.holds_kernel("CUDA"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CUDA keys are in use")
@pytest.mark.usefixtures("no_cuda_library", "calls")
def test_triton_stands_in_for_an_absent_cuda_library(
    other_switch: backends._Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "triton_version", lambda: "3.6.0")
    assert backends.cuda_backend() == "reference"
    backends.load()
    assert cuda_ops() == WITH_GPU_KERNEL
    assert backends.cuda_backend() == "triton"
    with dk.use_backend("native"):
        assert backends.cuda_backend() == "triton"
    with dk.use_backend("reference"):
        assert backends.cuda_backend() == "reference"
    assert cuda_ops() == WITH_GPU_KERNEL


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CUDA keys are in use")
@pytest.mark.usefixtures("no_cuda_library", "other_switch")
def test_without_triton_the_reference_serves_cuda_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "triton_version", lambda: None)
    backends.load()
    assert cuda_ops() == []
    assert backends.cuda_backend() == "reference"


@pytest.mark.usefixtures("no_cuda_library", "calls")
def test_a_loaded_cuda_library_is_preferred(
    other_switch: backends._Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = _native.Library(Path("cuda.so"), None)
    monkeypatch.setattr(_native, "load_cuda", lambda: loaded)
    monkeypatch.setattr(backends, "triton_version", lambda: "3.6.0")
    backends.load()
    assert other_switch.triton_keys == ()
    assert backends.cuda_backend() == "native"


def _import_in_a_fresh_process(**environ: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys, deq_kernels as dk\n"
        "from deq_kernels.ops import backends\n"
        "print(backends._SWITCH.name, backends.cuda_backend(), 'triton' in sys.modules)"
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, **environ},
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to ask Triton for")
def test_triton_that_cannot_be_had_is_an_error_at_import() -> None:
    done = _import_in_a_fresh_process(DEQ_KERNELS_BACKEND="triton", TRITON_INTERPRET="0")
    assert done.returncode != 0
    assert "ImportError: DEQ_KERNELS_BACKEND=triton cannot be met." in done.stderr


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_triton_can_be_asked_for_by_the_environment() -> None:
    done = _import_in_a_fresh_process(DEQ_KERNELS_BACKEND="triton", TRITON_INTERPRET="1")
    assert done.stderr == ""
    gpu = "triton" if torch.cuda.is_available() else "None"
    assert done.stdout.split() == ["triton", gpu, "True"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton may stand in on a GPU")
def test_triton_is_not_imported_where_it_is_not_wanted() -> None:
    done = _import_in_a_fresh_process(DEQ_KERNELS_BACKEND="auto")
    assert done.stdout.split() == ["native", "None", "False"]
