"""The result of a run as data: what the JSON holds."""

import json
import types
import typing
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from .contention import DISTURBED_CORES
from .timing import Spread

SCHEMA = 1
Status = Literal["timed", "refused", "absent"]
_T = TypeVar("_T")


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
        floor_share: gigabytes_per_second over that of the triad.
        fits_cache: whether state and directions fit the last-level cache, so that the triad is
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
class CaseResult:
    """One case with all its rows.

    Attributes:
        relative_residual: smallest residual norm over norm of z in the batch, of the anchor.
        map_milliseconds: the evaluations of the map alone, which every row contains.
        triad_gigabytes_per_second: measured in the rounds of this case.
        other_load_cores: cores that other processes used during the rounds, on average; None
            where the system does not say.
    """

    name: str
    batch: int
    dim: int
    steps: int
    relative_residual: float
    map_milliseconds: Spread
    triad_gigabytes_per_second: Spread
    other_load_cores: float | None
    rows: tuple[Row, ...]


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
        providers: what each provider is, by name.
    """

    schema: int
    date: str
    commit: str | None
    machine: dict[str, str | int | None]
    versions: dict[str, str | None]
    dtype: str
    rounds: int
    providers: dict[str, str]
    cases: tuple[CaseResult, ...]
    memory: MemoryResult | None = None

    @property
    def disturbed_cases(self) -> tuple[str, ...]:
        """Names of the cases that were timed while others used the machine."""
        return tuple(
            case.name for case in self.cases if (case.other_load_cores or 0.0) > DISTURBED_CORES
        )

    @property
    def refusals(self) -> tuple[str, ...]:
        """One line for every provider that was refused."""
        return tuple(
            f"{case.name}: {row.provider} {row.reason}"
            for case in self.cases
            for row in case.rows
            if row.status == "refused"
        )


def save_report(report: Report, path: Path) -> None:
    """Write the report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load_report(path: Path) -> Report:
    """Read a report written by ``save_report``.

    Raises:
        ValueError: the file is not such a report, or was written with another schema.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise ValueError(
            f"a benchmark report has schema {SCHEMA}, but {path} has {schema!r}; "
            "measure again with this version"
        )
    return _build(Report, data)


def _build(kind: type[_T], data: dict[str, Any]) -> _T:
    """Make a dataclass from plain values, and those nested in it."""
    known = {field.name for field in fields(typing.cast("Any", kind))}
    if unknown := set(data) - known:
        raise ValueError(f"{kind.__name__} has no {sorted(unknown)}; the report is damaged")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _convert(hints[name], value) for name, value in data.items()})


def _convert(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if is_dataclass(hint):
        return _build(typing.cast("type", hint), value)
    if typing.get_origin(hint) is tuple:
        return tuple(_convert(typing.get_args(hint)[0], item) for item in value)
    return value
