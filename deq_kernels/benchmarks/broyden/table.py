"""Reports as text: a table for the terminal, Markdown for a README."""

from collections.abc import Sequence

from ..timing import Spread
from .providers import OURS
from .report import CaseResult, MemoryResult, Report, Row, StepRow

_NOTES = (
    "ms: median time of one solve, the map included. / ours: median over the rounds of the time",
    "divided by that of ours. GB/s: least traffic (2k + 6 vectors for the step with k directions)",
    "over that time; of {ceiling}: the same over the measured bandwidth, * where everything fits",
    "the {cache} and the {ceiling} is no bound. difference: largest relative difference to the",
    "float64 iterates. evals: evaluations of the map.",
)
_STEP_NOTES = (
    "recorded step: a whole solve replayed as a CUDA graph, less a replay of its evaluations of",
    "the map, over the number of steps.",
)
_FAILED = "the tests of this library FAILED on this machine: these times mean nothing"


def format_table(report: Report) -> str:
    """Return the report as an aligned plain-text table, one block per case."""
    blocks = [_machine_line(report)]
    blocks += [_case_block(case, report) for case in report.cases]
    if report.memory is not None:
        blocks.append(_memory_block(report.memory))
    recorded = any(case.steps_recorded for case in report.cases)
    notes = _NOTES + (_STEP_NOTES if recorded else ())
    blocks.append("\n".join(notes).format(ceiling=report.ceiling, cache=_cache_name(report)))
    if report.disturbed_cases:
        blocks.append(
            "other processes used the machine during " + ", ".join(report.disturbed_cases) + ":\n"
            "do not trust these times; measure again on an idle machine"
        )
    if report.refusals:
        blocks.append("\n".join(("refused, and therefore not timed:", *report.refusals)))
    if report.tests == "failed":
        blocks.append(_FAILED)
    return "\n\n".join(blocks)


def format_markdown(report: Report, source: str) -> str:
    """Return the report as Markdown: one row per case, one column per provider.

    Args:
        report: what to show.
        source: path of its JSON as seen from the document, named below the table.
    """
    names = list(report.providers)
    lines = [
        _markdown_row(["batch × dim, steps", *names, f"{OURS}: share of {report.ceiling}"]),
        _markdown_row(["---", *("---:" for _ in names), "---:"]),
    ]
    for case in report.cases:
        rows = {row.provider: row for row in case.rows}
        share = _share(rows[OURS]) if OURS in rows else "–"
        lines.append(
            _markdown_row(
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
    blocks.append(f"{_machine_line(report)}. Source: [{source}]({source}).")
    if report.disturbed_cases:
        blocks.append(
            "Other processes used the machine during: " + ", ".join(report.disturbed_cases) + "."
        )
    if report.tests == "failed":
        blocks.append(f"**{_FAILED[0].upper()}{_FAILED[1:]}.**")
    return "\n\n".join(blocks)


def machine_name(report: Report) -> str:
    """The device a report was measured on, in a few words."""
    machine = report.machine
    if report.on_gpu:
        return (
            f"{machine['gpu']} (compute capability {machine['compute_capability']}, "
            f"{machine['multiprocessors']} multiprocessors, driver {machine['driver']})"
        )
    return f"{machine['cpu']} ({machine['torch_isa']}), {machine['threads']} thread(s)"


def _cache_name(report: Report) -> str:
    return "L2 cache" if report.on_gpu else "last-level cache"


def _machine_line(report: Report) -> str:
    parts = [
        machine_name(report),
        *(f"{name} {version}" for name, version in report.versions.items() if version is not None),
        f"commit {report.commit or 'unknown'}",
        report.date[:10],
    ]
    return ", ".join(parts)


def _case_block(case: CaseResult, report: Report) -> str:
    rate = case.ceiling_gigabytes_per_second
    title = (
        f"{case.name} {report.dtype}: relative residual {case.relative_residual:.1e}, "
        f"map alone {_three_digits(case.map_milliseconds.median)} ms, {report.ceiling} "
        f"{rate.median:.1f} GB/s ({rate.lower_quartile:.1f}-{rate.upper_quartile:.1f})"
    )
    if case.other_load_cores is not None:
        title += f", others used {case.other_load_cores:.2f} cores"
    of_ceiling = f"of {report.ceiling}"
    header = ("provider", "ms", "quartiles", "/ ours", "GB/s", of_ceiling, "difference", "evals")
    lines = [title, *_align([header, *(_cells(row) for row in case.rows if row.milliseconds)])]
    lines += [
        f"  {row.provider}: {row.status}: {row.reason}"
        for row in case.rows
        if row.status != "timed"
    ]
    if case.steps_recorded:
        step_header = ("recorded step", "us", "quartiles", "GB/s", of_ceiling)
        timed = [_step_cells(row) for row in case.steps_recorded if row.microseconds]
        lines += _align([step_header, *timed])
        lines += [
            f"  {row.name}: {row.status}: {row.reason}"
            for row in case.steps_recorded
            if row.status != "timed"
        ]
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    assert row.milliseconds is not None
    assert row.gigabytes_per_second is not None
    return (
        row.provider,
        _three_digits(row.milliseconds.median),
        _quartiles(row.milliseconds),
        "-" if row.time_over_ours is None else f"{row.time_over_ours.median:.2f}",
        f"{row.gigabytes_per_second:.1f}",
        _share(row),
        f"{row.iterate_difference:.1e}",
        str(row.evaluations),
    )


def _step_cells(row: StepRow) -> tuple[str, ...]:
    assert row.microseconds is not None
    return (
        row.name,
        _three_digits(row.microseconds.median),
        _quartiles(row.microseconds),
        f"{row.gigabytes_per_second:.1f}",
        _share(row),
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


def _markdown_steps(report: Report) -> list[str]:
    """The table of the recorded steps, and what it shows; nothing where none were recorded."""
    names = list(dict.fromkeys(row.name for case in report.cases for row in case.steps_recorded))
    if not names:
        return []
    lines = [
        _markdown_row(["batch × dim, steps", *names]),
        _markdown_row(["---", *("---:" for _ in names)]),
    ]
    for case in report.cases:
        rows = {row.name: row for row in case.steps_recorded}
        cells = (_markdown_step(rows[name]) if name in rows else "–" for name in names)
        lines.append(_markdown_row([_markdown_case(case), *cells]))
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
    text = _three_digits(row.milliseconds.median)
    if row.time_over_ours is None or row.provider == OURS:
        return text
    return f"{text} ({row.time_over_ours.median:.1f}×)"


def _markdown_step(row: StepRow) -> str:
    if row.microseconds is None:
        return row.status
    return f"{_three_digits(row.microseconds.median)} ({_share(row)})"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _three_digits(value: float) -> str:
    """Three significant digits, no exponent."""
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _quartiles(value: Spread) -> str:
    return f"{_three_digits(value.lower_quartile)}-{_three_digits(value.upper_quartile)}"


def _share(row: Row | StepRow) -> str:
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
