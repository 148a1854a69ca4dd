"""A whole run: check the work, time in interleaved rounds, put the numbers together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import torch

from deq_kernels.threads import use_threads

from .cases import Case
from .checks import Work, check_work, make_anchor
from .contention import OtherLoad
from .machine import commit, describe_machine, describe_versions, last_level_cache_bytes
from .memory import can_measure_memory, peak_solver_bytes
from .problem import make_problem
from .providers import OURS, Provider, ProviderAbsentError
from .report import SCHEMA, CaseResult, MemoryResult, MemoryRow, Report, Row
from .timing import spread, time_interleaved
from .triad import Triad

if TYPE_CHECKING:
    from .providers import Solve

    Say = Callable[[str], None]

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Names of the timed calls that are no providers.
_MAP = "(map)"
_TRIAD = "(triad)"


def run_benchmark(
    cases: Sequence[Case],
    providers: Sequence[Provider],
    *,
    dtype: str = "float32",
    rounds: int = 9,
    threads: int | None = None,
    memory_case: Case | None = None,
    say: "Say",
) -> Report:
    """Measure all providers on all cases.

    Args:
        cases: what to solve.
        providers: who solves it.
        dtype: dtype of the state, ``float32`` or ``float64``.
        rounds: timed samples per provider and case.
        threads: number of threads torch uses during the run; as it is now if not given.
        memory_case: the case whose peak memory is measured; none if not given.
        say: called with one line of progress at a time.

    Raises:
        ValueError: an unknown dtype, no case or provider, a provider given twice, fewer than one
            round or thread, or a case that converges to rounding.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but got {dtype!r}")
    if not cases or not providers:
        raise ValueError("a run needs at least one case and one provider, but got none")
    names = [provider.name for provider in providers]
    if len(set(names)) < len(names):
        raise ValueError(
            f"every provider is measured once, but got {', '.join(names)}; name each one once"
        )
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, but got {rounds}")
    with use_threads(threads):
        return Report(
            schema=SCHEMA,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            commit=commit(),
            machine=describe_machine(),
            versions=describe_versions(),
            dtype=dtype,
            rounds=rounds,
            providers={provider.name: provider.description for provider in providers},
            cases=_run_cases(cases, providers, dtype=DTYPES[dtype], rounds=rounds, say=say),
            memory=(
                None
                if memory_case is None
                else _measure_memory(memory_case, providers, dtype=DTYPES[dtype], say=say)
            ),
        )


def _run_cases(
    cases: Sequence[Case],
    providers: Sequence[Provider],
    *,
    dtype: torch.dtype,
    rounds: int,
    say: "Say",
) -> tuple[CaseResult, ...]:
    triad = Triad(dtype=dtype)
    solvers, absent = _load(providers)
    results = []
    with torch.no_grad():
        for index, case in enumerate(cases):
            say_of_case = _prefixed(say, f"[{index + 1}/{len(cases)}] {case.name}: ")
            say_of_case("checking that everybody does the same work")
            anchor = make_anchor(case, dtype=dtype)
            work = {
                provider.name: check_work(
                    provider, solvers[provider.name], case, anchor, dtype=dtype
                )
                for provider in providers
                if provider.name in solvers
            }
            other_load = OtherLoad()
            seconds = _time_case(
                case,
                {name: solvers[name] for name, done in work.items() if done.refusal is None},
                triad,
                dtype=dtype,
                rounds=rounds,
                say=say_of_case,
            )
            other_load_cores = other_load.cores()
            triad_rate = spread([triad.bytes_moved / s * 1e-9 for s in seconds[_TRIAD]])
            results.append(
                CaseResult(
                    name=case.name,
                    batch=case.batch,
                    dim=case.dim,
                    steps=case.steps,
                    relative_residual=anchor.relative_residual,
                    map_milliseconds=spread([s * 1e3 for s in seconds[_MAP]]),
                    triad_gigabytes_per_second=triad_rate,
                    other_load_cores=other_load_cores,
                    rows=tuple(
                        Row(provider.name, "absent", absent[provider.name])
                        if provider.name in absent
                        else _row(
                            provider,
                            case,
                            work[provider.name],
                            seconds,
                            itemsize=dtype.itemsize,
                            triad_rate=triad_rate.median,
                        )
                        for provider in providers
                    ),
                )
            )
    return tuple(results)


def _prefixed(say: "Say", prefix: str) -> "Say":
    return lambda line: say(prefix + line)


def _load(providers: Sequence[Provider]) -> tuple[dict[str, "Solve"], dict[str, str]]:
    """Return the solvers by name, and why the other providers are absent."""
    solvers: dict[str, Solve] = {}
    absent: dict[str, str] = {}
    for provider in providers:
        try:
            solvers[provider.name] = provider.load()
        except ProviderAbsentError as error:
            absent[provider.name] = str(error)
    return solvers, absent


def _time_case(
    case: Case,
    solvers: dict[str, "Solve"],
    triad: Triad,
    *,
    dtype: torch.dtype,
    rounds: int,
    say: "Say",
) -> dict[str, tuple[float, ...]]:
    """Return the seconds of one call per round: solves, the map alone, the triad."""
    problem = make_problem(case, dtype=dtype)

    def evaluate_map() -> None:
        for _ in range(case.evaluations):
            problem.f(problem.z0)

    def bind(solve: "Solve") -> Callable[[], object]:
        return lambda: solve(problem.f, problem.z0, case.steps)

    calls: dict[str, Callable[[], object]] = {name: bind(solve) for name, solve in solvers.items()}
    calls[_MAP] = evaluate_map
    calls[_TRIAD] = triad
    return time_interleaved(calls, rounds=rounds, say=say)


def _row(
    provider: Provider,
    case: Case,
    work: Work,
    seconds: dict[str, tuple[float, ...]],
    *,
    itemsize: int,
    triad_rate: float,
) -> Row:
    row = Row(
        provider=provider.name,
        status="timed" if work.refusal is None else "refused",
        reason=work.refusal,
        evaluations=work.evaluations,
        iterate_difference=_finite_or_none(work.iterate_difference),
        residual_ratio=_finite_or_none(work.residual_ratio),
    )
    if work.refusal is not None:
        return row
    samples = seconds[provider.name]
    ours = seconds.get(OURS)
    milliseconds = spread([s * 1e3 for s in samples])
    floor_bytes = case.floor_bytes(itemsize, provider.history_itemsize)
    rate = floor_bytes / milliseconds.median * 1e-6
    cache = last_level_cache_bytes()
    return replace(
        row,
        milliseconds=milliseconds,
        time_over_ours=(
            None if ours is None else spread([s / o for s, o in zip(samples, ours, strict=True)])
        ),
        floor_bytes=floor_bytes,
        gigabytes_per_second=rate,
        floor_share=rate / triad_rate,
        fits_cache=(
            None
            if cache is None
            else case.working_set_bytes(itemsize, provider.history_itemsize) <= cache
        ),
    )


def _finite_or_none(value: float) -> float | None:
    # JSON has no NaN; the reason of the refusal keeps it.
    return value if math.isfinite(value) else None


def _measure_memory(
    case: Case, providers: Sequence[Provider], *, dtype: torch.dtype, say: "Say"
) -> MemoryResult:
    rows = []
    for provider in providers:
        say(f"peak memory of {provider.name} on {case.name}")
        if not can_measure_memory():
            rows.append(MemoryRow(provider.name, None, "peak memory is read from Linux's /proc"))
            continue
        try:
            peak = peak_solver_bytes(provider, case, dtype=dtype, threads=torch.get_num_threads())
        except ProviderAbsentError as error:
            rows.append(MemoryRow(provider.name, None, str(error)))
        else:
            rows.append(MemoryRow(provider.name, peak, None))
    return MemoryResult(
        case=case.name, state_bytes=case.batch * case.dim * dtype.itemsize, rows=tuple(rows)
    )
