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


def _load_native(device: str) -> "Solve":
    require_backend("native", device)
    return _broyden_of_this_package()


def _load_bfloat16_history(device: str) -> "Solve":
    import torch

    require_backend("native", device)
    return _broyden_of_this_package(history_dtype=torch.bfloat16)


def _load_reference(device: str) -> "Solve":
    return _broyden_of_this_package()


def _load_triton(device: str) -> "Solve":
    require_backend("triton", device)
    return _broyden_of_this_package()


def _load_graph(device: str) -> "Solve":
    require_gpu(device, "CUDA graphs")
    require_backend("native", device)
    return _broyden_of_this_package(cuda_graph=True)


def _load_plain_textbook(device: str) -> "Solve":
    from .plain_pytorch import solve_textbook

    return solve_textbook


def _load_plain_rearranged(device: str) -> "Solve":
    from .plain_pytorch import solve_rearranged

    return solve_rearranged


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


def _load_locuslab(device: str) -> "Solve":
    from .peer_locuslab import solve_locuslab

    return solve_locuslab


def _load_scipy(device: str) -> "Solve":
    from .peer_scipy import load_scipy

    return load_scipy(device)


def _load_jaxopt(device: str) -> "Solve":
    from .peer_jaxopt import load_jaxopt

    return load_jaxopt(device)


def _broyden_of_this_package(**options: Any) -> "Solve":
    import torch

    import deq_kernels as dk

    @cache
    def solver(steps: int) -> dk.Broyden:
        return dk.Broyden(max_steps=steps + 1, rtol=0.0, atol=0.0, stall_steps=None, **options)

    def solve(f: "Map", z0: "Tensor", steps: int) -> "Tensor":
        # The others return no inverse either.
        z = solver(steps)(f, z0, keep_inverse=False).z

        assert isinstance(z, torch.Tensor)  # as z0 is, not a tuple
        return z

    return solve


PROVIDERS = (
    SolveProvider(
        OURS, "deq_kernels, native kernels", _load_native, backend="native", has_step=True
    ),
    SolveProvider(
        "ours-bf16",
        "deq_kernels, native kernels, directions stored in bfloat16",
        _load_bfloat16_history,
        history_itemsize=2,
        backend="native",
        has_step=True,
    ),
    SolveProvider(
        "ours-triton",
        "deq_kernels, Triton kernels",
        _load_triton,
        devices=("cuda",),
        backend="triton",
        has_step=True,
    ),
    SolveProvider(
        "ours-graph",
        "deq_kernels, native kernels, map and step replayed as a CUDA graph",
        _load_graph,
        devices=("cuda",),
        backend="native",
    ),
    SolveProvider(
        "reference",
        "deq_kernels, its PyTorch reference",
        _load_reference,
        devices=("cpu",),
        backend="reference",
    ),
    SolveProvider(
        "plain", "plain PyTorch, best layout: U and V [B, m, d], baddbmm", _load_plain_textbook
    ),
    SolveProvider(
        "plain-4k", "the same, rearranged to two products per step", _load_plain_rearranged
    ),
    SolveProvider(
        "plain-compiled",
        "plain-4k with its update compiled by torch.compile",
        _load_plain_compiled,
        devices=("cuda",),
    ),
    SolveProvider("torchdeq", "torchdeq.solver.broyden.broyden_solver", _load_torchdeq),
    SolveProvider(
        "locuslab", "the update as locuslab's repositories deq and mdeq write it", _load_locuslab
    ),
    SolveProvider(
        "jaxopt",
        "jaxopt.Broyden, jit and vmap, in a process of its own",
        _load_jaxopt,
        devices=("cpu",),
    ),
    SolveProvider(
        "scipy",
        "scipy.optimize.broyden1, one sample",
        _load_scipy,
        devices=("cpu",),
        largest_batch=1,
    ),
)
