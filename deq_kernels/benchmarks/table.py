"""Reports as text: a table for the terminal, Markdown for a README."""

from collections.abc import Sequence

from .providers import OURS
from .report import CaseResult, MemoryResult, Report, Row
from .timing import Spread

_COLUMNS = ("provider", "ms", "quartiles", "/ ours", "GB/s", "of triad", "difference", "evals")
_NOTES = (
    "ms: median time of one solve, the map included. / ours: median over the rounds of the time",
    "divided by that of ours. GB/s: least traffic (2k + 6 vectors for the step with k directions)",
    "over that time; of triad: the same over the measured bandwidth, * where everything fits the",
    "last-level cache and the triad is no bound. difference: largest relative difference to the",
    "float64 iterates. evals: evaluations of the map.",
)


def format_table(report: Report) -> str:
    """Return the report as an aligned plain-text table, one block per case."""
    blocks = [_machine_line(report)]
    blocks += [_case_block(case, report.dtype) for case in report.cases]
    if report.memory is not None:
        blocks.append(_memory_block(report.memory))
    blocks.append("\n".join(_NOTES))
    if report.disturbed_cases:
        blocks.append(
            "other processes used the machine during " + ", ".join(report.disturbed_cases) + ":\n"
            "do not trust these times; measure again on an idle machine"
        )
    if report.refusals:
        blocks.append("\n".join(("refused, and therefore not timed:", *report.refusals)))
    return "\n\n".join(blocks)


def format_markdown(report: Report, source: str) -> str:
    """Return the report as Markdown: one row per case, one column per provider.

    Args:
        report: what to show.
        source: path of its JSON as seen from the document, named below the table.
    """
    names = list(report.providers)
    lines = [
        _markdown_row(["batch × dim, steps", *names, f"{OURS}: share of triad"]),
        _markdown_row(["---", *("---:" for _ in names), "---:"]),
    ]
    for case in report.cases:
        rows = {row.provider: row for row in case.rows}
        share = _share(rows[OURS]) if OURS in rows else "–"
        lines.append(
            _markdown_row(
                [
                    f"{case.batch} × {case.dim:,}, {case.steps}",
                    *(_markdown_time(rows[name]) for name in names),
                    share,
                ]
            )
        )
    notes = [
        f"Median milliseconds of one {report.dtype} solve over {report.rounds} interleaved rounds "
        "(in brackets: times that of ours, median over the rounds). "
        "\\* everything fits the last-level cache, where the triad is no bound.",
        f"{_machine_line(report)}. Source: [{source}]({source}).",
    ]
    if report.disturbed_cases:
        notes.append(
            "Other processes used the machine during: " + ", ".join(report.disturbed_cases) + "."
        )
    if report.memory is not None:
        notes.insert(1, _markdown_memory(report.memory))
    return "\n\n".join(["\n".join(lines), *notes])


def _machine_line(report: Report) -> str:
    machine, versions = report.machine, report.versions
    parts = [
        f"{machine['cpu']} ({machine['torch_isa']}), {machine['threads']} thread(s)",
        *(f"{name} {version}" for name, version in versions.items() if version is not None),
        f"commit {report.commit or 'unknown'}",
        report.date[:10],
    ]
    return ", ".join(parts)


def _case_block(case: CaseResult, dtype: str) -> str:
    triad = case.triad_gigabytes_per_second
    title = (
        f"{case.name} {dtype}: relative residual {case.relative_residual:.1e}, "
        f"map alone {_milliseconds(case.map_milliseconds.median)} ms, "
        f"triad {triad.median:.1f} GB/s ({triad.lower_quartile:.1f}-{triad.upper_quartile:.1f})"
    )
    if case.other_load_cores is not None:
        title += f", others used {case.other_load_cores:.2f} cores"
    cells = [_COLUMNS, *(_cells(row) for row in case.rows if row.status == "timed")]
    lines = [title, *_align(cells)]
    lines += [
        f"  {row.provider}: {row.status}: {row.reason}"
        for row in case.rows
        if row.status != "timed"
    ]
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    assert row.milliseconds is not None
    assert row.gigabytes_per_second is not None
    return (
        row.provider,
        _milliseconds(row.milliseconds.median),
        _quartiles(row.milliseconds),
        "-" if row.time_over_ours is None else f"{row.time_over_ours.median:.2f}",
        f"{row.gigabytes_per_second:.1f}",
        _share(row),
        f"{row.iterate_difference:.1e}",
        str(row.evaluations),
    )


def _memory_block(memory: MemoryResult) -> str:
    lines = [f"peak solver memory, {memory.case} (one state is {_mebibytes(memory.state_bytes)})"]
    cells = [("provider", "peak", "states")]
    for row in memory.rows:
        if row.peak_bytes is not None:
            states = f"{row.peak_bytes / memory.state_bytes:.1f}"
            cells.append((row.provider, _mebibytes(row.peak_bytes), states))
    lines += _align(cells)
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


def _markdown_time(row: Row) -> str:
    if row.milliseconds is None:
        return row.status
    text = _milliseconds(row.milliseconds.median)
    if row.time_over_ours is None or row.provider == OURS:
        return text
    return f"{text} ({row.time_over_ours.median:.1f}×)"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _milliseconds(value: float) -> str:
    """Three significant digits, no exponent."""
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _quartiles(value: Spread) -> str:
    return f"{_milliseconds(value.lower_quartile)}-{_milliseconds(value.upper_quartile)}"


def _share(row: Row) -> str:
    if row.floor_share is None:
        return "–"
    return f"{row.floor_share:.0%}" + ("*" if row.fits_cache else "")


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    ]
