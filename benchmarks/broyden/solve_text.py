"""Reports of whole solves as text: a table for the terminal, Markdown for a README."""

from ..columns import table_lines
from ..provider import OURS
from ..text import (
    align,
    machine_line,
    markdown_origin,
    markdown_row,
    neighbours,
    three_digits,
    warnings,
)
from .recorded_row import COLUMNS as STEP_COLUMNS
from .recorded_row import StepRow
from .solve_report import CaseResult, MemoryResult, SolveReport
from .solve_row import COLUMNS as SOLVE_COLUMNS
from .solve_row import Row, show_share

_NOTES = (
    "ms: median time of one solve, the map included. / ours: median over the rounds of the time",
    "divided by that of ours. GB/s: least traffic ({traffic})",
    "over that time; of {ceiling}: the same over the measured bandwidth, * where everything fits",
    "the {cache} and the {ceiling} is no bound. difference: largest relative difference to the",
    "float64 iterates. evals: evaluations of the map.",
)
_STEP_NOTES = (
    "recorded step: a whole solve replayed as a CUDA graph, less a replay of its evaluations of",
    "the map, over the number of steps.",
)


def format_table(report: SolveReport) -> str:
    """Return the report as an aligned plain-text table, one block per case."""
    blocks = [machine_line(report)]
    blocks += [_case_block(case, report) for case in report.cases]
    if report.memory is not None:
        blocks.append(_memory_block(report.memory))
    recorded = any(case.steps_recorded for case in report.cases)
    notes = _NOTES + (_STEP_NOTES if recorded else ())
    blocks.append(
        "\n".join(notes).format(
            ceiling=report.ceiling, cache=_cache_name(report), traffic=report.traffic
        )
    )
    blocks += warnings(report)
    return "\n\n".join(blocks)


def format_markdown(report: SolveReport, source: str) -> str:
    """Return the report as Markdown: one row per case, one column per provider.

    Args:
        report: what to show.
        source: path of its JSON as seen from the document, named below the table.
    """
    names = list(report.providers)
    lines = [
        markdown_row(["batch × dim, steps", *names, f"{OURS}: share of {report.ceiling}"]),
        markdown_row(["---", *("---:" for _ in names), "---:"]),
    ]
    for case in report.cases:
        rows = {row.provider: row for row in case.rows}
        share = show_share(rows[OURS]) if OURS in rows else "–"
        lines.append(
            markdown_row(
                [_markdown_case(case), *(_markdown_time(rows[name]) for name in names), share]
            )
        )
    blocks = [
        "\n".join(lines),
        f"Median milliseconds of one {report.dtype} solve over {report.rounds} interleaved rounds "
        "(in brackets: times that of ours, median over the rounds). "
        f"\\* everything fits the {_cache_name(report)}, where the {report.ceiling} is no bound.",
    ]
    blocks += _markdown_steps(report)
    if report.memory is not None:
        blocks.append(_markdown_memory(report.memory))
    blocks += markdown_origin(report, source)
    return "\n\n".join(blocks)


def _cache_name(report: SolveReport) -> str:
    return "L2 cache" if report.on_gpu else "last-level cache"


def _case_block(case: CaseResult, report: SolveReport) -> str:
    rate = case.ceiling_gigabytes_per_second
    title = (
        f"{case.name} {report.dtype}: relative residual {case.relative_residual:.1e}, "
        f"map alone {three_digits(case.map_milliseconds.median)} ms, {report.ceiling} "
        f"{rate.median:.1f} GB/s ({rate.lower_quartile:.1f}-{rate.upper_quartile:.1f})"
    )
    title += neighbours(case)
    lines = [title, *table_lines(SOLVE_COLUMNS, case.rows, ceiling=report.ceiling)]
    if case.steps_recorded:
        lines += table_lines(STEP_COLUMNS, case.steps_recorded, ceiling=report.ceiling)
    return "\n".join(lines)


def _memory_block(memory: MemoryResult) -> str:
    lines = [f"peak solver memory, {memory.case} (one state is {_mebibytes(memory.state_bytes)})"]
    cells = [("provider", "peak", "states")]
    for row in memory.rows:
        if row.peak_bytes is not None:
            states = f"{row.peak_bytes / memory.state_bytes:.1f}"
            cells.append((row.provider, _mebibytes(row.peak_bytes), states))
    lines += align(cells)
    lines += [f"  {row.provider}: absent: {row.reason}" for row in memory.rows if row.reason]
    return "\n".join(lines)


def _markdown_memory(memory: MemoryResult) -> str:
    peaks = ", ".join(
        f"{row.provider} {'–' if row.peak_bytes is None else _mebibytes(row.peak_bytes)}"
        for row in memory.rows
    )
    return (
        f"Peak solver memory for {memory.case}, where one state takes "
        f"{_mebibytes(memory.state_bytes)}: {peaks}."
    )


def _markdown_steps(report: SolveReport) -> list[str]:
    """The table of the recorded steps, and what it shows; nothing where none were recorded."""
    names = list(dict.fromkeys(row.name for case in report.cases for row in case.steps_recorded))
    if not names:
        return []
    lines = [
        markdown_row(["batch × dim, steps", *names]),
        markdown_row(["---", *("---:" for _ in names)]),
    ]
    for case in report.cases:
        rows = {row.name: row for row in case.steps_recorded}
        cells = (_markdown_step(rows[name]) if name in rows else "–" for name in names)
        lines.append(markdown_row([_markdown_case(case), *cells]))
    return [
        "\n".join(lines),
        "Microseconds of one step inside a CUDA graph, the map taken off (in brackets: least "
        f"traffic over that time, as a share of the {report.ceiling}).",
    ]


def _markdown_case(case: CaseResult) -> str:
    return f"{case.batch} × {case.dim:,}, {case.steps}"


def _markdown_time(row: Row) -> str:
    if row.milliseconds is None:
        return row.status
    text = three_digits(row.milliseconds.median)
    if row.time_over_ours is None or row.provider == OURS:
        return text
    return f"{text} ({row.time_over_ours.median:.1f}×)"


def _markdown_step(row: StepRow) -> str:
    if row.microseconds is None:
        return row.status
    return f"{three_digits(row.microseconds.median)} ({show_share(row)})"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
