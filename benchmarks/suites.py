"""All suites, and reports of any of them read and shown."""

from __future__ import annotations

from pathlib import Path

from deq_zoo.json_text import read_json

from .anderson.suite import AndersonSuite
from .broyden.suite import BroydenSuite
from .cells.suite import CellSuite
from .suite import Suite
from .suite_report import Report
from .training.suite import TrainingStepSuite

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (BroydenSuite(), AndersonSuite(), CellSuite(), TrainingStepSuite())
}
DEFAULT = BroydenSuite.name


def load_report(path: Path) -> Report:
    """Read a report of any suite.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is no report, or of a suite or schema that is unknown; the message
            names what is missing or strange.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise ValueError(f"a benchmark report is a JSON object, but {path} holds another value")
    name = data.get("suite")
    if not isinstance(name, str) or name not in SUITES:
        raise ValueError(f"a suite is one of {', '.join(SUITES)}, but {path} has {name!r}")
    return SUITES[name].read(data, path)


def format_markdown(report: Report, source: str) -> str:
    """Return a report as Markdown.

    Args:
        report: what to show.
        source: path of its JSON as seen from the document, named below the table.
    """
    return SUITES[report.suite].shown_as.markdown(report, source)
