"""The solvers that are compared: no ridge, no damping, a window of `HISTORY_LENGTH` evaluations.

jaxopt's Anderson is not among them: it takes plain steps until its window is full, and so has other
iterates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deq_kernels.optional import optional_import

from ..broyden.providers import SolveProvider, solves_of_this_package
from ..provider import OURS, ProviderAbsentError
from .cases import HISTORY_LENGTH
from .plain_pytorch import solve_plain

if TYPE_CHECKING:
    from torch import Tensor

    from ..broyden.providers import Map, Solve


def _ours(backend: str, **options: Any) -> Callable[[str], Solve]:
    return solves_of_this_package(
        "Anderson", backend, history_length=HISTORY_LENGTH, regularization=0.0, **options
    )


def _load_torchdeq(device: str) -> Solve:
    try:
        with optional_import(extra="bench"):
            from torchdeq.solver.anderson import anderson_solver
    except ImportError as error:
        raise ProviderAbsentError(str(error)) from error

    def solve(f: Map, z0: Tensor, steps: int) -> Tensor:
        z, _, _ = anderson_solver(
            f, z0, max_iter=steps + 1, tol=0.0, stop_mode="abs", m=HISTORY_LENGTH, lam=0.0
        )
        return z

    return solve


PROVIDERS = (
    SolveProvider(OURS, "deq_kernels, native kernels", _ours("native"), backend="native"),
    SolveProvider(
        "ours-bf16",
        "deq_kernels, native kernels, changes stored in bfloat16",
        _ours("native", history_dtype="bfloat16"),
        history_itemsize=2,
        backend="native",
    ),
    SolveProvider(
        "ours-triton",
        "deq_kernels, Triton kernels",
        _ours("triton"),
        devices=("cuda",),
        backend="triton",
    ),
    SolveProvider(
        "reference",
        "deq_kernels, its PyTorch reference",
        _ours("reference"),
        devices=("cpu",),
        backend="reference",
    ),
    SolveProvider(
        "plain", "plain PyTorch, inner products kept between steps", lambda device: solve_plain
    ),
    SolveProvider(
        "torchdeq",
        "torchdeq.solver.anderson.anderson_solver",
        _load_torchdeq,
        returns_image=True,
    ),
)
