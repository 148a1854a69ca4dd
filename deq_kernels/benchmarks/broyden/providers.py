"""The solvers that are compared, behind one signature.

Every provider takes ``steps`` unit Broyden steps from z0 with H_0 = -I, keeps every direction, has
its stop rule switched off by a zero tolerance, and returns per sample the evaluated iterate with
the smallest residual norm. The residual of Broyden's method is not monotone, so this is not always
the last iterate; all providers keep the best one, because a solver in use has to.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from deq_kernels.optional import optional_import

if TYPE_CHECKING:
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
        load: returns ``solve(f, z0, steps) -> z`` for the device of that name (``cpu`` or
            ``cuda``), or raises ``ProviderAbsentError``.
        history_itemsize: bytes per element of the stored directions where they have a dtype of
            their own; such a provider follows a trajectory of its own and is held to a bound on
            the residual instead of to equal iterates.
        devices: where it is measured unless the command line says otherwise.
        backend: the backend of this package that its solves run on; None for other packages.
        has_step: whether its step is also recorded and timed alone, as one of this package's ops.
    """

    name: str
    description: str
    load: "Callable[[str], Solve]"
    history_itemsize: int | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")
    backend: str | None = None
    has_step: bool = False

    def context(self) -> AbstractContextManager[None]:
        """What to enter around its solves, outside of what is timed."""
        if self.backend is None:
            return nullcontext()
        import deq_kernels as dk

        return dk.use_backend(self.backend)


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
    _require_gpu(device, "CUDA graphs")
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


def require_backend(backend: str, device: str) -> None:
    """Make sure that a backend of this package has kernels of its own for a device.

    Raises:
        ProviderAbsentError: it has none; the message says why.
    """
    import deq_kernels as dk
    from deq_kernels.ops.backends import usable_triton_kernels

    if backend == "triton":
        _require_gpu(device, "Triton kernels")
        try:
            keys = usable_triton_kernels().keys
        except (ImportError, RuntimeError) as error:
            raise ProviderAbsentError(str(error)) from error
        if "CUDA" not in keys:
            raise ProviderAbsentError("Triton interprets its kernels here: unset TRITON_INTERPRET")
        return
    info = dk.backend_info()
    absent = info.cuda_library_absent if device == "cuda" else info.cpu_library_absent
    if absent is not None:
        raise ProviderAbsentError(f"no native kernels: {absent}")


def _require_gpu(device: str, what: str) -> None:
    if device != "cuda":
        raise ProviderAbsentError(f"{what} run on a GPU only: measure with --device cuda")


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


OURS = "ours"
PROVIDERS = (
    Provider(OURS, "deq_kernels, native kernels", _load_native, backend="native", has_step=True),
    Provider(
        "ours-bf16",
        "deq_kernels, native kernels, directions stored in bfloat16",
        _load_bfloat16_history,
        history_itemsize=2,
        backend="native",
        has_step=True,
    ),
    Provider(
        "ours-triton",
        "deq_kernels, Triton kernels",
        _load_triton,
        devices=("cuda",),
        backend="triton",
        has_step=True,
    ),
    Provider(
        "ours-graph",
        "deq_kernels, native kernels, map and step replayed as a CUDA graph",
        _load_graph,
        devices=("cuda",),
        backend="native",
    ),
    Provider(
        "reference",
        "deq_kernels, its PyTorch reference",
        _load_reference,
        devices=("cpu",),
        backend="reference",
    ),
    Provider(
        "plain", "plain PyTorch, best layout: U and V [B, m, d], baddbmm", _load_plain_textbook
    ),
    Provider("plain-4k", "the same, rearranged to two products per step", _load_plain_rearranged),
    Provider(
        "plain-compiled",
        "plain-4k with its update compiled by torch.compile",
        _load_plain_compiled,
        devices=("cuda",),
    ),
    Provider("torchdeq", "torchdeq.solver.broyden.broyden_solver", _load_torchdeq),
)


def providers_on(device: str) -> tuple[Provider, ...]:
    """The providers that are measured on a device unless the command line says otherwise."""
    return tuple(provider for provider in PROVIDERS if device in provider.devices)


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
