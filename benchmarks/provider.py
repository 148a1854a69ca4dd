"""Who is compared: what the providers of every suite have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

OURS = "ours"
"""The provider that every other one's time is divided by."""

SolverT = TypeVar("SolverT")
ProviderT = TypeVar("ProviderT", bound="Provider")


class ProviderAbsentError(RuntimeError):
    """A provider cannot run here; the message is the reason shown in the reports."""


def failure(error: Exception) -> str:
    """Why a provider that raised an error is refused."""
    first_line = str(error).strip().partition("\n")[0]
    return f"failed: {type(error).__name__}: {first_line}"


@dataclass(frozen=True)
class Provider(Generic[SolverT]):
    """One that is compared.

    Attributes:
        name: the name on the command line and in every report.
        description: one line for ``--list`` and the reports.
        load: returns what solves a case of the suite, for the device of that name (``cpu`` or
            ``cuda``), or raises ``ProviderAbsentError``.
        devices: where it is measured unless the command line says otherwise.
        backend: the backend of this package that its solves run on; None for other packages.
    """

    name: str
    description: str
    load: Callable[[str], SolverT]
    devices: tuple[str, ...] = ("cpu", "cuda")
    backend: str | None = None

    def context(self) -> AbstractContextManager[None]:
        """What to enter around its solves, outside of what is timed."""
        if self.backend is None:
            return nullcontext()
        import deq_kernels as dk

        return dk.use_backend(self.backend)


def providers_on(device: str, providers: Sequence[ProviderT]) -> tuple[ProviderT, ...]:
    """Those that are measured on a device unless the command line says otherwise."""
    return tuple(provider for provider in providers if device in provider.devices)


def find_provider(name: str, providers: Sequence[ProviderT]) -> ProviderT:
    """Return the provider of that name.

    Raises:
        ValueError: there is none.
    """
    for provider in providers:
        if provider.name == name:
            return provider
    names = ", ".join(provider.name for provider in providers)
    raise ValueError(f"unknown provider {name!r}; choose from {names}")


def load_all(
    providers: Sequence[Provider[SolverT]], device: str
) -> tuple[dict[str, SolverT], dict[str, str]]:
    """What solves, by provider; and why the other providers are absent."""
    solvers: dict[str, SolverT] = {}
    absent: dict[str, str] = {}
    for provider in providers:
        try:
            solvers[provider.name] = provider.load(device)
        except ProviderAbsentError as error:
            absent[provider.name] = str(error)
    return solvers, absent


def require_backend(backend: str, device: str) -> None:
    """Make sure that a backend of this package has kernels of its own for a device.

    Raises:
        ProviderAbsentError: it has no such kernels; the message says why.
    """
    import deq_kernels as dk
    from deq_kernels.ops.backends import usable_triton_kernels

    if backend == "triton":
        require_gpu(device, "Triton kernels")
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


def require_gpu(device: str, what: str) -> None:
    """Make sure that the device is a GPU.

    Raises:
        ProviderAbsentError: it is not; the message says what needs a GPU.
    """
    if device != "cuda":
        raise ProviderAbsentError(f"{what} run on a GPU only: measure with --device cuda")
