"""What a suite of benchmarks is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from deq_zoo.typed import read_dataclass

from .provider import Provider
from .run import Run, Say, Settings
from .suite_report import MeasuredCase, Report, check_machine, check_rows


class NamedCase(Protocol):
    """What every suite's case has before it is measured."""

    @property
    def name(self) -> str:
        """Its name on the command line and in every report."""
        ...


@dataclass(frozen=True, kw_only=True)
class Presentation:
    """How the reports of a suite are shown.

    Attributes:
        table: as an aligned plain-text table.
        markdown: as Markdown, with the path of the report's JSON as seen from the document.
        save_plot: drawn into an image; ImportError where matplotlib is not installed.
    """

    table: Callable[[Any], str]
    markdown: Callable[[Any, str], str]
    save_plot: Callable[[Any, Path], None]


class Suite(ABC):
    """Cases, those who are compared on them, and reports of it.

    Attributes:
        name: its name on the command line.
        summary: one line for ``--help``.
        case_format: how a case is named.
        options: those of the command that only some suites have, and this one does.
        providers: who can be compared.
        report_type: what a run is put together as.
        schema: the version of its format; a result of another one is measured again.
        shown_as: how its reports are shown.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    case_format: ClassVar[str]
    options: ClassVar[frozenset[str]] = frozenset()
    providers: ClassVar[Sequence[Provider[Any]]]
    report_type: ClassVar[type[Report]]
    schema: ClassVar[int] = 1
    shown_as: ClassVar[Presentation]

    @abstractmethod
    def cases(self, device: str, *, quick: bool = False) -> Sequence[NamedCase]:
        """The cases that are measured on a device unless the command line names others."""

    @abstractmethod
    def find_case(self, text: str) -> NamedCase:
        """The case of that name.

        Raises:
            ValueError: there is none.
        """

    def facts(self, settings: Settings) -> dict[str, Any]:
        """The fields of a report that only this suite has, but for its cases."""
        return {}

    def begin(self, run: Run) -> Any:
        """What `run_case` is given: the run, with what is made once for all its cases."""
        return run

    @abstractmethod
    def run_case(self, case: Any, run: Any, say: Say) -> MeasuredCase:
        """Check what every provider does on a case, then time those that do the same work."""

    def finish(self, report: Any, run: Any) -> Report:
        """The report with what is measured once, after all cases."""
        measured: Report = report
        return measured

    def read(self, data: Mapping[str, Any], path: Path) -> Report:
        """A report from the contents of its JSON.

        Args:
            data: what the JSON holds.
            path: where it lies, for messages.

        Raises:
            ValueError: they are not a report of this suite and schema; the message names what is
                missing or of the wrong type.
        """
        if data.get("schema") != self.schema:
            raise ValueError(
                f"a report of the suite {self.name} has schema {self.schema}, but {path} has "
                f"{data.get('schema')!r}; measure again with this version"
            )
        report = read_dataclass(self.report_type, data, "the report")
        check_machine(report)
        for label, rows in report.tables():
            check_rows(report, label, [row.provider for row in rows])
        return report
