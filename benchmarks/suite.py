"""What the command needs to know of a suite of benchmarks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from .device import Device
from .provider import Provider
from .report import Report
from .run import Say

ForceRegime = Callable[[str], AbstractContextManager[None]]


class NamedCase(Protocol):
    """What every suite's case has before it is measured."""

    @property
    def name(self) -> str:
        """Its name on the command line and in every report."""
        ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure, whatever the suite.

    Attributes:
        device: where.
        dtype: dtype of the states, ``float32`` or ``float64``.
        rounds: timed samples per provider and case.
        threads: number of threads torch uses; as it is now if None.
        commit: the commit that is measured; what git says of the checkout if None.
        tests: what the library's tests said, for the report.
        save: called with the report so far after each case, so that a run cut short has results.
        say: called with one line of progress at a time.
        memory: the case whose peak memory is measured too.
        force_regime: with it ours is also timed in each regime of its kernels: it makes them take
            the regime of a name inside a `with` block.
    """

    device: Device
    dtype: str
    rounds: int
    threads: int | None
    commit: str | None
    tests: Literal["passed", "failed"] | None
    save: Callable[[Report], None] | None
    say: Say
    memory: str | None = None
    force_regime: ForceRegime | None = None


class Suite(ABC):
    """Cases, those who are compared on them, and reports of it.

    Attributes:
        name: its name on the command line.
        summary: one line for ``--help``.
        case_format: how a case is named.
        options: those of the command that only some suites have, and this one does.
        providers: who can be compared.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    case_format: ClassVar[str]
    options: ClassVar[frozenset[str]] = frozenset()
    providers: ClassVar[Sequence[Provider[Any]]]

    @abstractmethod
    def cases(self, device: str, *, quick: bool = False) -> Sequence[NamedCase]:
        """The cases that are measured on a device unless the command line names others."""

    @abstractmethod
    def find_case(self, text: str) -> NamedCase:
        """The case of that name.

        Raises:
            ValueError: there is none.
        """

    @abstractmethod
    def measure(
        self,
        cases: Sequence[Any],
        providers: Sequence[Any],
        settings: Settings,
    ) -> Report:
        """Measure all providers on all cases.

        Raises:
            ValueError: a setting is wrong.
        """

    @abstractmethod
    def read(self, data: Mapping[str, Any], path: Path) -> Report:
        """A report from the contents of its JSON.

        Raises:
            ValueError: they are no report of this suite, in a schema that is known; the message
                names what is missing or strange.
        """

    @abstractmethod
    def format_table(self, report: Any) -> str:
        """The report as an aligned plain-text table."""

    @abstractmethod
    def format_markdown(self, report: Any, source: str) -> str:
        """The report as Markdown, with the path of its JSON as seen from the document."""

    @abstractmethod
    def save_plot(self, report: Any, path: Path) -> None:
        """Draw the report into an image.

        Raises:
            ImportError: matplotlib is not installed.
        """
