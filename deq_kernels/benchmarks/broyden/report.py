"""The result of a run as data: what the JSON holds."""

import json
import types
import typing
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from deq_kernels.files import write_atomically

from ..contention import DISTURBED_CORES, DISTURBED_HOST_CORES
from ..timing import Spread

SCHEMA = 2
"""2: the ceiling has a name and may be a copy; steps recorded in a CUDA graph; results on GPUs."""
Ceiling = Literal["triad", "copy"]
Status = Literal["timed", "refused", "absent"]
_T = TypeVar("_T")
# What every table and chart states, by device; a report may hold more.
_MACHINE_KEYS = {
    "cpu": {"cpu", "threads", "torch_isa"},
    "cuda": {"cpu", "gpu", "compute_capability", "multiprocessors", "driver"},
}
_NEW_NAMES = {"triad_gigabytes_per_second": "ceiling_gigabytes_per_second"}


@dataclass(frozen=True)
class Row:
    """One provider on one case. What was not measured is None.

    Attributes:
        provider: its name.
        status: ``timed``; ``refused`` because it did not do the same work; or ``absent``.
        reason: why it was refused or is absent.
        evaluations: evaluations of the map in one solve.
        iterate_difference: largest relative difference to the float64 anchor over the batch.
        residual_ratio: largest residual norm over the anchor's.
        milliseconds: time of one solve.
        time_over_ours: time divided by that of ``ours`` in the same round.
        floor_bytes: least traffic of the solver with this provider's history dtype.
        gigabytes_per_second: floor_bytes over the median time; for a provider that moves more
            than the floor this is its useful rate, not its traffic.
        floor_share: gigabytes_per_second over that of the ceiling.
        fits_cache: whether state and directions fit the last-level cache, so that the ceiling is
            no bound; None where the size of the cache is unknown.
    """

    provider: str
    status: Status
    reason: str | None
    evaluations: int | None = None
    iterate_difference: float | None = None
    residual_ratio: float | None = None
    milliseconds: Spread | None = None
    time_over_ours: Spread | None = None
    floor_bytes: int | None = None
    gigabytes_per_second: float | None = None
    floor_share: float | None = None
    fits_cache: bool | None = None


@dataclass(frozen=True)
class StepRow:
    """One way to run the step, recorded in a CUDA graph, with the map taken off.

    Attributes:
        name: the provider, or ours in one regime of its kernels.
        status: ``timed`` or ``refused``.
        reason: why it was refused.
        microseconds: per step, of a replayed solve less a replay of the map alone.
        floor_bytes: least traffic of all steps with this history dtype.
        gigabytes_per_second: floor_bytes over the median time of all steps.
        floor_share: gigabytes_per_second over that of the ceiling.
        fits_cache: as in ``Row``.
    """

    name: str
    status: Status
    reason: str | None
    microseconds: Spread | None = None
    floor_bytes: int | None = None
    gigabytes_per_second: float | None = None
    floor_share: float | None = None
    fits_cache: bool | None = None


@dataclass(frozen=True)
class CaseResult:
    """One case with all its rows.

    Attributes:
        relative_residual: smallest residual norm over norm of z in the batch, of the anchor.
        map_milliseconds: the evaluations of the map alone, which every row contains.
        ceiling_gigabytes_per_second: measured in the rounds of this case.
        other_load_cores: cores that other processes used during the rounds, on average; None
            where the system does not say.
        steps_recorded: the steps in a CUDA graph; empty where none can be recorded.
    """

    name: str
    batch: int
    dim: int
    steps: int
    relative_residual: float
    map_milliseconds: Spread
    ceiling_gigabytes_per_second: Spread
    other_load_cores: float | None
    rows: tuple[Row, ...]
    steps_recorded: tuple[StepRow, ...] = ()


@dataclass(frozen=True)
class MemoryRow:
    """Peak memory of one provider; ``peak_bytes`` or ``reason`` is None."""

    provider: str
    peak_bytes: int | None
    reason: str | None


@dataclass(frozen=True)
class MemoryResult:
    """Peak solver memory of one case.

    Attributes:
        state_bytes: bytes of one state [batch, dim], the natural unit of the rows.
    """

    case: str
    state_bytes: int
    rows: tuple[MemoryRow, ...]


@dataclass(frozen=True)
class Report:
    """One run: where, with what, and all its numbers.

    Attributes:
        date: UTC, ISO 8601.
        ceiling: the operation whose bandwidth shares refer to: STREAM's triad on a CPU, a copy
            within the device's memory on a GPU.
        providers: what each provider is, by name.
        tests: what the tests of this library said on this machine; None if nobody told.
    """

    schema: int
    date: str
    commit: str | None
    ceiling: Ceiling
    machine: dict[str, str | int | None]
    versions: dict[str, str | None]
    dtype: str
    rounds: int
    providers: dict[str, str]
    cases: tuple[CaseResult, ...]
    memory: MemoryResult | None = None
    tests: Literal["passed", "failed"] | None = None

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
    def refusals(self) -> tuple[str, ...]:
        """One line for everything that was refused."""
        lines: list[str] = []
        for case in self.cases:
            lines += [
                f"{case.name}: {row.provider} {row.reason}"
                for row in case.rows
                if row.status == "refused"
            ]
            lines += [
                f"{case.name}: step of {step.name} {step.reason}"
                for step in case.steps_recorded
                if step.status == "refused"
            ]
        return tuple(lines)


def save_report(report: Report, path: Path) -> None:
    """Write the report as JSON; a crash leaves either the old file or the new one."""
    text = json.dumps(asdict(report), indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def load_report(path: Path) -> Report:
    """Read a report written by ``save_report``, with this schema or an earlier one.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not such a report, or was written with a schema that is unknown;
            the message names what is missing or strange.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema not in range(1, SCHEMA + 1):
        raise ValueError(
            f"a benchmark report has schema {SCHEMA} or an earlier one, but {path} has {schema!r}; "
            "measure again with this version"
        )
    if schema == 1:
        data = _from_schema_1(data)
    report = _build(Report, data, "the report")
    device = report.machine.get("device")
    if device not in _MACHINE_KEYS:
        raise _damaged("the report: machine", "must name the device cpu or cuda", device)
    if missing := _MACHINE_KEYS[device] - set(report.machine):
        raise ValueError(f"the report: machine lacks {', '.join(sorted(missing))}; it is damaged")
    for case in report.cases:
        rows = [row.provider for row in case.rows]
        if sorted(rows) != sorted(report.providers):
            raise _damaged(f"the report: {case.name}", "must have a row for each provider", rows)
    return report


def _from_schema_1(data: dict[str, Any]) -> dict[str, Any]:
    """The same report in schema 2: its ceiling was always the triad."""
    data = {**data, "schema": SCHEMA, "ceiling": "triad"}
    if isinstance(data.get("cases"), list):
        data["cases"] = [
            {_NEW_NAMES.get(name, name): value for name, value in case.items()}
            if isinstance(case, dict)
            else case
            for case in data["cases"]
        ]
    return data


def _build(kind: type[_T], data: Any, where: str) -> _T:
    """Make a dataclass from plain values, and those nested in it."""
    if not isinstance(data, dict):
        raise _damaged(where, f"must be the fields of a {kind.__name__}", data)
    known = fields(typing.cast("Any", kind))
    required = {field.name for field in known if field.default is MISSING}
    if missing := required - set(data):
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}; it is damaged")
    if unknown := set(data) - {field.name for field in known}:
        raise ValueError(f"{where} has unknown fields {sorted(unknown)}; it is damaged")
    hints = typing.get_type_hints(kind)
    return kind(
        **{name: _convert(hints[name], value, f"{where}: {name}") for name, value in data.items()}
    )


def _convert(hint: Any, value: Any, where: str) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if is_dataclass(hint):
        return _build(typing.cast("type", hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(
            _convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)
        )
    if origin is Literal:
        fits = value in arguments
    else:
        fits = isinstance(value, (int, float) if hint is float else origin or hint)
    if not fits:
        raise _damaged(where, f"must be {getattr(hint, '__name__', hint)}", value)
    return value


def _damaged(where: str, contract: str, value: object) -> ValueError:
    return ValueError(f"{where} {contract}, but got {value!r}; it is damaged")
