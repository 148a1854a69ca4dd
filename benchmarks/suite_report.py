"""What the report of any suite says: where, when, with what, and what was refused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deq_zoo.typed import damaged

from .arithmetic import SCALES_WELL
from .contention import DISTURBED_CORES, DISTURBED_HOST_CORES

Status = Literal["timed", "refused", "absent"]
# What every table and chart states, by device; a report may hold more.
_MACHINE_KEYS = {
    "cpu": {"cpu", "threads", "torch_isa"},
    "cuda": {"cpu", "gpu", "compute_capability", "multiprocessors", "driver"},
}


@dataclass(frozen=True, kw_only=True)
class MeasuredCase:
    """What every suite keeps of a case.

    Attributes:
        name: its name on the command line.
        other_load_cores: cores that other processes used while it was timed, on average; None
            where the system does not say.
        arithmetic_cores: how many cores' worth of arithmetic the threads got; None where it was
            not measured.
    """

    name: str
    other_load_cores: float | None
    arithmetic_cores: float | None = None


@dataclass(frozen=True)
class ProviderRow:
    """What every suite says of a provider on a case.

    Attributes:
        provider: its name.
        status: ``timed``; ``refused`` because it did not do the same work; or ``absent``.
        reason: why it was refused or is absent.
    """

    provider: str
    status: Status
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Report(ABC):
    """One run.

    Attributes:
        suite: which one.
        schema: the version of the suite's format.
        date: UTC, ISO 8601.
        commit: the commit that was measured; None where it is unknown.
        machine: the device as plain values.
        versions: of everything measured; None for what is not installed.
        dtype: of the states.
        rounds: timed samples per provider and case.
        providers: what each provider is, by name.
        tests: what the tests of this library said on this machine; None if it is unknown.
        cases: in the order they were measured.
    """

    suite: str
    schema: int
    date: str
    commit: str | None
    machine: dict[str, str | int | None]
    versions: dict[str, str | None]
    dtype: str
    rounds: int
    providers: dict[str, str]
    tests: Literal["passed", "failed"] | None = None
    cases: tuple[Any, ...]

    @abstractmethod
    def tables(self) -> Sequence[tuple[str, Sequence[ProviderRow]]]:
        """What was solved, in words, and the rows of all providers on it."""

    @property
    def refusals(self) -> tuple[str, ...]:
        """One line for everything that was refused."""
        return tuple(
            f"{label}: {row.provider} {row.reason}"
            for label, rows in self.tables()
            for row in rows
            if row.status == "refused"
        )

    @property
    def on_gpu(self) -> bool:
        """Whether this was measured on a GPU."""
        return self.machine["device"] == "cuda"

    @property
    def disturbed_cases(self) -> tuple[str, ...]:
        """Names of the cases that were timed while others used the machine."""
        limit = DISTURBED_HOST_CORES if self.on_gpu else DISTURBED_CORES
        return tuple(case.name for case in self.cases if (case.other_load_cores or 0.0) > limit)

    @property
    def crowded_cases(self) -> tuple[str, ...]:
        """Names of the cases whose threads did not get a core each."""
        threads = self.machine.get("threads")
        least = SCALES_WELL * threads if isinstance(threads, int) else 0.0
        return tuple(
            case.name
            for case in self.cases
            if case.arithmetic_cores is not None and case.arithmetic_cores < least
        )

    @property
    def machine_name(self) -> str:
        """The device in a few words."""
        machine = self.machine
        if self.on_gpu:
            return (
                f"{machine['gpu']} (compute capability {machine['compute_capability']}, "
                f"{machine['multiprocessors']} multiprocessors, driver {machine['driver']})"
            )
        return f"{machine['cpu']} ({machine['torch_isa']}), {machine['threads']} thread(s)"


def check_machine(report: Report) -> None:
    """Raise ValueError unless the machine of a report that was read says what texts state."""
    device = report.machine.get("device")
    if device not in _MACHINE_KEYS:
        raise damaged("the report: machine", "must name the device cpu or cuda", device)
    if missing := _MACHINE_KEYS[str(device)] - set(report.machine):
        raise ValueError(f"the report: machine lacks {', '.join(sorted(missing))}; it is damaged")


def check_rows(report: Report, where: str, rows: Sequence[str]) -> None:
    """Raise ValueError unless there is a row for each provider."""
    if sorted(rows) != sorted(report.providers):
        raise damaged(f"the report: {where}", "must have a row for each provider", list(rows))
