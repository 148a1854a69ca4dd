"""The solvers that are compared, behind one signature.

Every provider takes ``steps`` unit Broyden steps from z0 with H_0 = -I, keeps every direction, has
its stop rule switched off by a zero tolerance, and returns per sample the evaluated iterate with
the smallest residual norm. The residual of Broyden's method is not monotone, so this is not always
the last iterate; all providers keep the best one, because a solver in use has to.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from deq_kernels.optional import optional_import

from ..provider import OURS, Provider, ProviderAbsentError, require_backend, require_gpu
from .peer_jaxopt import load_jaxopt
from .peer_locuslab import solve_locuslab
from .peer_scipy import load_scipy
from .plain_pytorch import solve_rearranged, solve_textbook

if TYPE_CHECKING:
    from torch import Tensor

    Map = Callable[[Any], Tensor]
    Solve = Callable[[Map, Tensor, int], Tensor]


@dataclass(frozen=True)
class SolveProvider(Provider["Solve"]):
    """A solver to be compared; ``load`` returns ``solve(f, z0, steps) -> z``.

    Attributes:
        history_itemsize: bytes per element of the stored directions where they have a dtype of
            their own; such a provider follows a trajectory of its own and is held to a bound on
            the residual instead of to equal iterates.
        has_step: whether its step is also recorded and timed alone, as one of this package's ops.
        returns_image: whether it returns f of the best iterate, where the others return that.
        largest_batch: the most samples that it solves at once; absent on cases with more. None for
            any number.
    """

    history_itemsize: int | None = None
    has_step: bool = False
    returns_image: bool = False
    largest_batch: int | None = None

    def why_not(self, batch: int) -> str | None:
        """Why it is absent on cases of this many samples; None where it is not."""
        if self.largest_batch is None or batch <= self.largest_batch:
            return None
        return f"solves at most {self.largest_batch} at a time; the case has {batch} samples"


def solves_of_this_package(
    solver: str, backend: str, *, history_dtype: str | None = None, **options: Any
) -> Callable[[str], "Solve"]:
    """The ``load`` of a solver of this package, its stop rule switched off.

    Args:
        solver: its class, by the name that `deq_kernels` gives it.
        backend: that it runs on.
        history_dtype: name of the dtype of what it stores; None for that of the state.
        options: of the solver.
    """

    def load(device: str) -> "Solve":
        import torch

        import deq_kernels as dk

        if options.get("cuda_graph"):
            require_gpu(device, "CUDA graphs")
        if backend != "reference":
            require_backend(backend, device)
        stored = None if history_dtype is None else getattr(torch, history_dtype)

        @cache
        def solver_of(steps: int) -> Any:
            unstopped = {"max_steps": steps + 1, "rtol": 0.0, "atol": 0.0, "stall_steps": None}
            return getattr(dk, solver)(history_dtype=stored, **unstopped, **options)

        def solve(f: "Map", z0: "Tensor", steps: int) -> "Tensor":
            # The others return no inverse either.
            z = solver_of(steps)(f, z0, keep_inverse=False).z
            assert isinstance(z, torch.Tensor)  # as z0 is, not a tuple
            return z

        return solve

    return load


def _load_plain_compiled(device: str) -> "Solve":
    from .plain_compiled import CompileError, make_solve

    try:
        return make_solve(device)
    except CompileError as error:
        raise ProviderAbsentError(f"torch.compile does not work here: {error}") from error


def _load_torchdeq(device: str) -> "Solve":
    try:
        with optional_import(extra="bench"):
            from torchdeq.solver.broyden import broyden_solver
    except ImportError as error:
        raise ProviderAbsentError(str(error)) from error

    def solve(f: "Map", z0: "Tensor", steps: int) -> "Tensor":
        z, _, _ = broyden_solver(f, z0, max_iter=steps, tol=0.0, stop_mode="abs", ls=False)
        return z

    return solve


PROVIDERS = (
    SolveProvider(
        OURS,
        "deq_kernels, native kernels",
        solves_of_this_package("Broyden", "native"),
        backend="native",
        has_step=True,
    ),
    SolveProvider(
        "ours-bf16",
        "deq_kernels, native kernels, directions stored in bfloat16",
        solves_of_this_package("Broyden", "native", history_dtype="bfloat16"),
        history_itemsize=2,
        backend="native",
        has_step=True,
    ),
    SolveProvider(
        "ours-triton",
        "deq_kernels, Triton kernels",
        solves_of_this_package("Broyden", "triton"),
        devices=("cuda",),
        backend="triton",
        has_step=True,
    ),
    SolveProvider(
        "ours-graph",
        "deq_kernels, native kernels, map and step replayed as a CUDA graph",
        solves_of_this_package("Broyden", "native", cuda_graph=True),
        devices=("cuda",),
        backend="native",
    ),
    SolveProvider(
        "reference",
        "deq_kernels, its PyTorch reference",
        solves_of_this_package("Broyden", "reference"),
        devices=("cpu",),
        backend="reference",
    ),
    SolveProvider(
        "plain",
        "plain PyTorch, best layout: U and V [B, m, d], baddbmm",
        lambda device: solve_textbook,
    ),
    SolveProvider(
        "plain-4k", "the same, rearranged to two products per step", lambda device: solve_rearranged
    ),
    SolveProvider(
        "plain-compiled",
        "plain-4k with its update compiled by torch.compile",
        _load_plain_compiled,
        devices=("cuda",),
    ),
    SolveProvider("torchdeq", "torchdeq.solver.broyden.broyden_solver", _load_torchdeq),
    SolveProvider(
        "locuslab",
        "the update as locuslab's repositories deq and mdeq write it",
        lambda device: solve_locuslab,
    ),
    SolveProvider(
        "jaxopt",
        "jaxopt.Broyden, jit and vmap, in a process of its own",
        load_jaxopt,
        devices=("cpu",),
    ),
    SolveProvider(
        "scipy",
        "scipy.optimize.broyden1, one sample",
        load_scipy,
        devices=("cpu",),
        largest_batch=1,
    ),
)
