"""The CPU as a device to measure on."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from . import machine
from .broyden import memory
from .device import Ceiling, Device
from .timing import wall_clock
from .triad import Triad

if TYPE_CHECKING:
    from .broyden.cases import Case
    from .broyden.providers import SolveProvider


class Cpu(Device):
    """Calls return when their work is done, so the clock on the wall times everything."""

    name = "cpu"
    ceiling: Ceiling = "triad"
    torch_device = torch.device("cpu")

    def solve_clock(self, call: Callable[[], object], repeats: int) -> float:
        return wall_clock(call, repeats)

    def device_clock(self, call: Callable[[], object], repeats: int) -> float:
        return wall_clock(call, repeats)

    def bandwidth(self, dtype: torch.dtype) -> Triad:
        return Triad(dtype=dtype)

    def cache_bytes(self) -> int | None:
        return machine.last_level_cache_bytes()

    def describe(self) -> dict[str, str | int | None]:
        return machine.describe_machine()

    def versions(self) -> dict[str, str | None]:
        return machine.describe_versions()

    def why_no_memory(self) -> str | None:
        return None if memory.can_measure_memory() else "peak memory is read from Linux's /proc"

    def peak_solver_bytes(
        self, provider: "SolveProvider", case: "Case", *, dtype: torch.dtype
    ) -> int:
        return memory.peak_solver_bytes(
            provider, case, dtype=dtype, threads=torch.get_num_threads()
        )

    def launches(self, call: Callable[[], object]) -> None:
        return None

    def capture(self, run: Callable[[], None]) -> None:
        return None
