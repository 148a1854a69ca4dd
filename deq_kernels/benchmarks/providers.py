"""The solvers that are compared, behind one signature.

Every provider takes ``steps`` unit Broyden steps from z0 with H_0 = -I, keeps every direction, has
its stop rule switched off by a zero tolerance, and returns per sample the evaluated iterate with
the smallest residual norm. The residual of Broyden's method is not monotone, so this is not always
the last iterate; all providers keep the best one, because a solver in use has to.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deq_kernels.optional import optional_import

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Map = Callable[[Any], Tensor]
    Solve = Callable[[Map, Tensor, int], Tensor]


class ProviderAbsentError(RuntimeError):
    """A provider cannot run here; the message is the reason shown in the reports."""


@dataclass(frozen=True)
class Provider:
    """A solver to be compared.

    Attributes:
        name: the name on the command line and in every report.
        description: one line for ``--list`` and the reports.
        load: returns ``solve(f, z0, steps) -> z``, or raises ``ProviderAbsentError``.
        history_itemsize: bytes per element of the stored directions where they have a dtype of
            their own; such a provider follows a trajectory of its own and is held to a bound on
            the residual instead of to equal iterates.
    """

    name: str
    description: str
    load: "Callable[[], Solve]"
    history_itemsize: int | None = None


def _load_native() -> "Solve":
    _require_native_library()
    return _broyden_of_this_package()


def _load_bfloat16_history() -> "Solve":
    import torch

    _require_native_library()
    return _broyden_of_this_package(history_dtype=torch.bfloat16)


def _load_reference() -> "Solve":
    import deq_kernels as dk

    solve_with_active_backend = _broyden_of_this_package()

    def solve(f: "Map", z0: "Tensor", steps: int) -> "Tensor":
        with dk.use_backend("reference"):
            return solve_with_active_backend(f, z0, steps)

    return solve


def _load_plain_textbook() -> "Solve":
    from .plain_pytorch import solve_textbook

    return solve_textbook


def _load_plain_rearranged() -> "Solve":
    from .plain_pytorch import solve_rearranged

    return solve_rearranged


def _load_torchdeq() -> "Solve":
    try:
        with optional_import(extra="bench"):
            from torchdeq.solver.broyden import broyden_solver
    except ImportError as error:
        raise ProviderAbsentError(str(error)) from error

    def solve(f: "Map", z0: "Tensor", steps: int) -> "Tensor":
        z, _, _ = broyden_solver(f, z0, max_iter=steps, tol=0.0, stop_mode="abs", ls=False)
        return z

    return solve


def _require_native_library() -> None:
    import deq_kernels as dk

    absent = dk.backend_info().cpu_library_absent
    if absent is not None:
        raise ProviderAbsentError(f"no native kernels: {absent}")


def _broyden_of_this_package(*, history_dtype: "torch.dtype | None" = None) -> "Solve":
    import torch

    import deq_kernels as dk

    def solve(f: "Map", z0: "Tensor", steps: int) -> "Tensor":
        solver = dk.Broyden(
            max_steps=steps + 1,
            rtol=0.0,
            atol=0.0,
            stall_steps=None,
            history_dtype=history_dtype,
        )
        # The others return no inverse either.
        z = solver(f, z0, keep_inverse=False).z

        assert isinstance(z, torch.Tensor)  # as z0 is, not a tuple
        return z

    return solve


OURS = "ours"
PROVIDERS = (
    Provider(OURS, "deq_kernels, native kernels", _load_native),
    Provider(
        "ours-bf16",
        "deq_kernels, native kernels, directions stored in bfloat16",
        _load_bfloat16_history,
        history_itemsize=2,
    ),
    Provider("reference", "deq_kernels, its PyTorch reference", _load_reference),
    Provider(
        "plain", "plain PyTorch, best layout: U and V [B, m, d], baddbmm", _load_plain_textbook
    ),
    Provider("plain-4k", "the same, rearranged to two products per step", _load_plain_rearranged),
    Provider("torchdeq", "torchdeq.solver.broyden.broyden_solver", _load_torchdeq),
)


def find_provider(name: str) -> Provider:
    """Return the provider of that name.

    Raises:
        ValueError: there is none.
    """
    for provider in PROVIDERS:
        if provider.name == name:
            return provider
    names = ", ".join(provider.name for provider in PROVIDERS)
    raise ValueError(f"unknown provider {name!r}; choose from {names}")
