"""What the tables of all suites are made of."""

from collections.abc import Sequence

from .suite_report import MeasuredCase, Report
from .timing import Spread

FAILED_TESTS = "the tests of this library FAILED on this machine: these times mean nothing"


def machine_line(report: Report) -> str:
    """Where, with what and when a report was measured."""
    parts = [
        report.machine_name,
        *(f"{name} {version}" for name, version in report.versions.items() if version is not None),
        f"commit {report.commit or 'unknown'}",
        report.date[:10],
    ]
    return ", ".join(parts)


def warnings(report: Report) -> list[str]:
    """What a reader of the terminal's table must know: disturbed cases, refusals, failed tests."""
    blocks = []
    if report.disturbed_cases:
        blocks.append(
            "other processes used the machine during " + ", ".join(report.disturbed_cases) + ":\n"
            "do not trust these times; measure again on an idle machine"
        )
    if report.crowded_cases:
        blocks.append(
            f"the threads did not get a core each during {', '.join(report.crowded_cases)}:\n"
            "this machine's cores are threads of fewer cores, or were for a while; measure again"
        )
    if report.refusals:
        blocks.append("\n".join(("refused, and therefore not timed:", *report.refusals)))
    if report.tests == "failed":
        blocks.append(FAILED_TESTS)
    return blocks


def markdown_origin(report: Report, source: str) -> list[str]:
    """What ends every Markdown table: machine, source, disturbed cases, failed tests."""
    blocks = [f"{machine_line(report)}. Source: [{source}]({source})."]
    if report.disturbed_cases:
        blocks.append(
            "Other processes used the machine during: " + ", ".join(report.disturbed_cases) + "."
        )
    if report.crowded_cases:
        blocks.append(
            "The threads did not get a core each during: " + ", ".join(report.crowded_cases) + "."
        )
    if report.tests == "failed":
        blocks.append(f"**{FAILED_TESTS[0].upper()}{FAILED_TESTS[1:]}.**")
    return blocks


def neighbours(case: MeasuredCase) -> str:
    """What others left of the machine, as the end of a case's title."""
    note = ""
    if case.other_load_cores is not None:
        note += f", others used {case.other_load_cores:.2f} cores"
    if case.arithmetic_cores is not None:
        note += f", threads did the arithmetic of {case.arithmetic_cores:.2f} cores"
    return note


def markdown_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def three_digits(value: float) -> str:
    """Three significant digits, no exponent."""
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def quartiles(value: Spread) -> str:
    """The lower and the upper one."""
    return f"{three_digits(value.lower_quartile)}-{three_digits(value.upper_quartile)}"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with aligned columns, the first to the left, the others to the right.

    Each line begins with two spaces.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    ]
