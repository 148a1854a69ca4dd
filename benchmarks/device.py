"""The device a run measures on: where tensors live, what times them, what bounds them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

import torch

if TYPE_CHECKING:
    from .broyden.cases import Case
    from .broyden.providers import SolveProvider

DEVICES = ("cpu", "cuda")
Ceiling = Literal["triad", "copy"]
"""Operations whose bandwidth is a bound: STREAM's triad, and a copy within the device."""


class Bandwidth(Protocol):
    """A call that moves a known number of bytes as fast as the device can."""

    @property
    def bytes_moved(self) -> int:
        """Bytes of one call."""
        ...

    def __call__(self) -> None:
        """Move them once."""
        ...


class Device(ABC):
    """What a measurement needs to know of its device.

    Attributes:
        name: ``cpu`` or ``cuda``, as on the command line.
        ceiling: which operation's bandwidth the shares of a report refer to.
        torch_device: where tensors are put.
    """

    name: str
    ceiling: Ceiling
    torch_device: torch.device

    @abstractmethod
    def solve_clock(self, call: Callable[[], object], repeats: int) -> float:
        """Seconds of one call, from where the caller stands to where its result is there."""

    @abstractmethod
    def device_clock(self, call: Callable[[], object], repeats: int) -> float:
        """Seconds the device itself is busy with one of many calls in a row."""

    @abstractmethod
    def bandwidth(self, dtype: torch.dtype) -> Bandwidth:
        """The operation named by ``ceiling``, on arrays that no cache holds."""

    @abstractmethod
    def cache_bytes(self) -> int | None:
        """Size of the last-level cache; None where the system does not say."""

    @abstractmethod
    def describe(self) -> dict[str, str | int | None]:
        """The machine as plain values."""

    @abstractmethod
    def versions(self) -> dict[str, str | None]:
        """Versions of everything measured; None for what is not installed."""

    @abstractmethod
    def why_no_memory(self) -> str | None:
        """Why peak memory cannot be measured, or None where it can."""

    @abstractmethod
    def peak_solver_bytes(
        self, provider: "SolveProvider", case: "Case", *, dtype: torch.dtype
    ) -> int:
        """Growth of the memory in use from just before a solve to its peak, in bytes.

        Raises:
            ProviderAbsentError: the provider cannot run here.
        """

    @abstractmethod
    def launches(self, call: Callable[[], object]) -> tuple[str, ...] | None:
        """Names of the kernels that a call launches; None where nothing can tell."""

    @abstractmethod
    def capture(self, run: Callable[[], None]) -> Callable[[], object] | None:
        """Record what ``run`` launches; return what replays it, None where nothing can record."""


def find_device(name: str) -> Device:
    """Return the device of that name.

    Raises:
        ValueError: there is none, or this process cannot use it; the message says why.
    """
    if name == "cpu":
        from .cpu import Cpu

        return Cpu()
    if name == "cuda":
        from .cuda import Cuda

        return Cuda()
    raise ValueError(f"device must be one of {', '.join(DEVICES)}, but got {name!r}")
