"""The solvers that are compared: no ridge, no damping, a window of `HISTORY_LENGTH` evaluations.

jaxopt's Anderson is not among them: it takes plain steps until its window is full, and so has other
iterates.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from deq_kernels.optional import optional_import

from ..broyden.providers import SolveProvider
from ..provider import OURS, ProviderAbsentError, require_backend
from .cases import HISTORY_LENGTH

if TYPE_CHECKING:
    from torch import Tensor

    from ..broyden.providers import Map, Solve


def _load_native(device: str) -> Solve:
    require_backend("native", device)
    return _anderson_of_this_package()


def _load_bfloat16_history(device: str) -> Solve:
    import torch

    require_backend("native", device)
    return _anderson_of_this_package(history_dtype=torch.bfloat16)


def _load_triton(device: str) -> Solve:
    require_backend("triton", device)
    return _anderson_of_this_package()


def _load_reference(device: str) -> Solve:
    return _anderson_of_this_package()


def _anderson_of_this_package(**options: Any) -> Solve:
    import torch

    import deq_kernels as dk

    @cache
    def solver(steps: int) -> dk.Anderson:
        return dk.Anderson(
            history_length=HISTORY_LENGTH,
            regularization=0.0,
            max_steps=steps + 1,
            rtol=0.0,
            atol=0.0,
            stall_steps=None,
            **options,
        )

    def solve(f: Map, z0: Tensor, steps: int) -> Tensor:
        z = solver(steps)(f, z0, keep_inverse=False).z
        assert isinstance(z, torch.Tensor)  # as z0 is, not a tuple
        return z

    return solve


def _load_plain(device: str) -> Solve:
    from .plain_pytorch import solve_plain

    return solve_plain


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
    SolveProvider(OURS, "deq_kernels, native kernels", _load_native, backend="native"),
    SolveProvider(
        "ours-bf16",
        "deq_kernels, native kernels, changes stored in bfloat16",
        _load_bfloat16_history,
        history_itemsize=2,
        backend="native",
    ),
    SolveProvider(
        "ours-triton",
        "deq_kernels, Triton kernels",
        _load_triton,
        devices=("cuda",),
        backend="triton",
    ),
    SolveProvider(
        "reference",
        "deq_kernels, its PyTorch reference",
        _load_reference,
        devices=("cpu",),
        backend="reference",
    ),
    SolveProvider("plain", "plain PyTorch, inner products kept between steps", _load_plain),
    SolveProvider(
        "torchdeq",
        "torchdeq.solver.anderson.anderson_solver",
        _load_torchdeq,
        returns_image=True,
    ),
)
