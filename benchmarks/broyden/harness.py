"""A whole run: check the work, time in interleaved rounds, put the numbers together."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from deq_zoo.threads import use_threads

from ..arithmetic import ArithmeticProbe
from ..contention import OtherLoad
from ..device import Bandwidth, Device, find_device
from ..provider import OURS, ProviderAbsentError, load_all
from ..run import DTYPES, Say, check_settings, origin, prefixed
from ..timing import Clock, Spread, Timed, spread, time_interleaved
from .captured import Captured, Variant, capture_map, capture_step, variants_of
from .cases import Case
from .checks import Anchor, Work, check_work, make_anchor
from .elsewhere import SolverElsewhere
from .problem import make_problem
from .providers import BroydenProvider
from .report import NAME, SCHEMA, BroydenReport, CaseResult, MemoryResult, MemoryRow, Row, StepRow

if TYPE_CHECKING:
    from ..suite import ForceRegime
    from .providers import Solve

    Seconds = Mapping[str, tuple[float, ...]]

# Names of the timed calls that are no providers.
_MAP = "(map)"
_CEILING = "(ceiling)"
_RECORDED_MAP = "(recorded map)"
_RECORDED_STEP = "(recorded) "


@dataclass(frozen=True)
class _Run:
    """What is the same for all cases of a run."""

    device: Device
    providers: Sequence[BroydenProvider]
    solvers: "Mapping[str, Solve]"
    absent: Mapping[str, str]
    variants: Sequence[Variant]
    dtype: torch.dtype
    rounds: int
    bandwidth: Bandwidth


def run_benchmark(
    cases: Sequence[Case],
    providers: Sequence[BroydenProvider],
    *,
    device: Device | None = None,
    dtype: str = "float32",
    rounds: int = 9,
    threads: int | None = None,
    memory_case: Case | None = None,
    force_regime: "ForceRegime | None" = None,
    commit: str | None = None,
    tests: Literal["passed", "failed"] | None = None,
    save: Callable[[BroydenReport], None] | None = None,
    say: Say,
) -> BroydenReport:
    """Measure all providers on all cases.

    Args:
        cases: what to solve.
        providers: who solves it.
        device: where; the CPU if not given.
        dtype: dtype of the state, ``float32`` or ``float64``.
        rounds: timed samples per provider and case.
        threads: number of threads torch uses during the run; as it is now if not given.
        memory_case: the case whose peak memory is measured; none if not given.
        force_regime: with it the recorded step of ours is also timed in each regime; see
            `captured.variants_of`.
        commit: the commit that is measured; what git says of the checkout if not given.
        tests: what the library's tests said, for the report.
        save: called with the report so far after each case, so that a run cut short has results.
        say: called with one line of progress at a time.

    Raises:
        ValueError: an unknown dtype, no case or provider, a provider given twice, fewer than one
            round or thread, or a case that converges to rounding.
    """
    check_settings(cases, providers, dtype=dtype, rounds=rounds)
    device = device or find_device("cpu")
    with use_threads(threads):
        solvers, absent = load_all(providers, device.name)
        run = _Run(
            device=device,
            providers=providers,
            solvers=solvers,
            absent=absent,
            variants=variants_of([p for p in providers if p.name in solvers], force_regime),
            dtype=DTYPES[dtype],
            rounds=rounds,
            bandwidth=device.bandwidth(DTYPES[dtype]),
        )
        report = BroydenReport(
            suite=NAME,
            schema=SCHEMA,
            ceiling=device.ceiling,
            cases=(),
            **origin(providers, device, dtype=dtype, rounds=rounds, commit=commit, tests=tests),
        )
        for index, case in enumerate(cases):
            prefix = f"[{index + 1}/{len(cases)}] {case.name}: "
            result = _run_case(case, run, prefixed(say, prefix))
            report = replace(report, cases=(*report.cases, result))
            if save is not None:
                save(report)
        if memory_case is not None:
            report = replace(report, memory=_measure_memory(memory_case, run, say))
        return report


@torch.no_grad()
def _run_case(case: Case, run: _Run, say: Say) -> CaseResult:
    say("checking that everybody does the same work")
    dtype = run.dtype
    anchor = make_anchor(case, dtype=dtype, device=run.device.torch_device)
    too_large = {p.name: reason for p in run.providers if (reason := p.why_not(case.batch))}
    absent = {**too_large, **run.absent}
    work = {
        provider.name: check_work(provider, run.solvers[provider.name], case, anchor, dtype=dtype)
        for provider in run.providers
        if provider.name not in absent
    }
    recorded_map, recorded = _record(case, anchor, run)
    helpers = [s.process for s in run.solvers.values() if isinstance(s, SolverElsewhere)]
    other_load = OtherLoad([process for process in helpers if process is not None])
    probe = ArithmeticProbe(run.device.name)
    calls = {**_solve_calls(case, work, run), **probe.calls}
    if recorded_map is not None:
        calls[_RECORDED_MAP] = Timed(recorded_map, run.device.device_clock)
    for name, captured in recorded.items():
        if captured.replay is not None:
            calls[_RECORDED_STEP + name] = Timed(captured.replay, run.device.device_clock)
    seconds = time_interleaved(calls, rounds=run.rounds, say=say)
    other_load_cores = other_load.cores()
    ceiling = spread([run.bandwidth.bytes_moved / s * 1e-9 for s in seconds[_CEILING]])
    return CaseResult(
        name=case.name,
        batch=case.batch,
        dim=case.dim,
        steps=case.steps,
        relative_residual=anchor.relative_residual,
        map_milliseconds=spread([s * 1e3 for s in seconds[_MAP]]),
        ceiling_gigabytes_per_second=ceiling,
        other_load_cores=other_load_cores,
        arithmetic_cores=probe.cores(seconds),
        rows=tuple(
            Row(provider.name, "absent", absent[provider.name])
            if provider.name in absent
            else _row(provider, case, work[provider.name], seconds, run, ceiling)
            for provider in run.providers
        ),
        steps_recorded=tuple(
            _step_row(variant, case, recorded[variant.name].work, seconds, run, ceiling)
            for variant in run.variants
            if variant.name in recorded
        ),
    )


def _record(
    case: Case, anchor: Anchor, run: _Run
) -> tuple[Callable[[], object] | None, dict[str, Captured]]:
    """Record the map and every variant of the step, where the device can."""
    if not run.variants:
        return None, {}
    recorded_map = capture_map(case, run.device, dtype=run.dtype)
    if recorded_map is None:
        return None, {}
    return recorded_map, {
        variant.name: capture_step(variant, case, anchor, run.device, dtype=run.dtype)
        for variant in run.variants
    }


def _solve_calls(case: Case, work: Mapping[str, Work], run: _Run) -> dict[str, Timed]:
    """The timed calls of a case: solves of all that did the work, the map alone, the ceiling."""
    problem = make_problem(case, dtype=run.dtype, device=run.device.torch_device)

    def evaluate_map() -> None:
        for _ in range(case.evaluations):
            problem.f(problem.z0)

    def bind(solve: "Solve") -> Callable[[], object]:
        return lambda: solve(problem.f, problem.z0, case.steps)

    def clock(solve: "Solve") -> Clock:
        return solve.clock if isinstance(solve, SolverElsewhere) else run.device.solve_clock

    calls = {
        provider.name: Timed(
            bind(run.solvers[provider.name]), clock(run.solvers[provider.name]), provider.context
        )
        for provider in run.providers
        if provider.name in work and work[provider.name].refusal is None
    }
    calls[_MAP] = Timed(evaluate_map, run.device.solve_clock)
    calls[_CEILING] = Timed(run.bandwidth, run.device.device_clock)
    return calls


def _row(
    provider: BroydenProvider,
    case: Case,
    work: Work,
    seconds: "Seconds",
    run: _Run,
    ceiling: Spread,
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
    return replace(
        row,
        milliseconds=milliseconds,
        time_over_ours=(
            None if ours is None else spread([s / o for s, o in zip(samples, ours, strict=True)])
        ),
        **_rates(provider, case, milliseconds.median * 1e-3, run, ceiling),
    )


def _step_row(
    variant: Variant, case: Case, work: Work, seconds: "Seconds", run: _Run, ceiling: Spread
) -> StepRow:
    if work.refusal is not None:
        return StepRow(variant.name, "refused", work.refusal)
    replays = seconds[_RECORDED_STEP + variant.name]
    maps = seconds[_RECORDED_MAP]
    steps = spread([replay - only for replay, only in zip(replays, maps, strict=True)])
    if steps.median <= 0:
        reason = "the replay with steps was no slower than the one without"
        return StepRow(variant.name, "refused", reason)
    return StepRow(
        variant.name,
        "timed",
        None,
        microseconds=spread([s * 1e6 / case.steps for s in steps.samples]),
        **_rates(variant.provider, case, steps.median, run, ceiling),
    )


def _rates(
    provider: BroydenProvider, case: Case, seconds: float, run: _Run, ceiling: Spread
) -> dict[str, Any]:
    """The fields that say how a time compares with the least traffic."""
    itemsize = run.dtype.itemsize
    floor_bytes = case.floor_bytes(itemsize, provider.history_itemsize)
    rate = floor_bytes / seconds * 1e-9
    cache = run.device.cache_bytes()
    working_set = case.working_set_bytes(itemsize, provider.history_itemsize)
    return {
        "floor_bytes": floor_bytes,
        "gigabytes_per_second": rate,
        "floor_share": rate / ceiling.median,
        "fits_cache": None if cache is None else working_set <= cache,
    }


def _finite_or_none(value: float) -> float | None:
    # JSON has no NaN; the reason of the refusal keeps it.
    return value if math.isfinite(value) else None


def _measure_memory(case: Case, run: _Run, say: Say) -> MemoryResult:
    rows = []
    for provider in run.providers:
        say(f"peak memory of {provider.name} on {case.name}")
        reason = provider.why_not(case.batch) or run.device.why_no_memory()
        peak = None
        if reason is None:
            try:
                peak = run.device.peak_solver_bytes(provider, case, dtype=run.dtype)
            except ProviderAbsentError as error:
                reason = str(error)
            except RuntimeError as error:  # one that fails leaves the others to be measured
                reason = Work.of_failure(error).refusal
        rows.append(MemoryRow(provider.name, peak, reason))
    return MemoryResult(
        case=case.name, state_bytes=case.batch * case.dim * run.dtype.itemsize, rows=tuple(rows)
    )
