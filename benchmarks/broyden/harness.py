"""One case: check the work, time in interleaved rounds, put the numbers together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..arithmetic import ArithmeticProbe
from ..contention import OtherLoad
from ..device import Bandwidth, Device
from ..provider import ProviderAbsentError, failure
from ..run import Run, Say
from ..timing import Clock, Spread, Timed, spread, time_interleaved
from .captured import Captured, Variant, capture_map, capture_step, variants_of
from .cases import Case, parse_case
from .checks import Anchor, Work, check_work, make_anchor
from .elsewhere import SolverElsewhere
from .problem import make_problem
from .providers import SolveProvider
from .recorded_row import StepRow, measured_step
from .solve_report import CaseResult, MemoryResult, MemoryRow
from .solve_row import Row, measured_row

if TYPE_CHECKING:
    from .providers import Solve

    Seconds = Mapping[str, tuple[float, ...]]

# Names of the timed calls other than the providers' solves.
_MAP = "(map)"
_CEILING = "(ceiling)"
_RECORDED_MAP = "(recorded map)"
_RECORDED_STEP = "(recorded) "


@dataclass(frozen=True)
class SolveRun:
    """What is the same for all cases of a run."""

    device: Device
    providers: Sequence[SolveProvider]
    solvers: "Mapping[str, Solve]"
    absent: Mapping[str, str]
    variants: Sequence[Variant]
    dtype: torch.dtype
    rounds: int
    bandwidth: Bandwidth
    memory_case: Case | None
    say: Say

    @classmethod
    def of(cls, run: Run) -> "SolveRun":
        """Of a run of any suite, with the steps to record and the bandwidth to compare with."""
        settings = run.settings
        memory_case = None if settings.memory is None else parse_case(settings.memory, Case)
        present = [provider for provider in run.providers if provider.name in run.loaded]
        return cls(
            device=settings.device,
            providers=run.providers,
            solvers=run.loaded,
            absent=run.absent,
            variants=variants_of(present, settings.force_regime),
            dtype=settings.torch_dtype,
            rounds=settings.rounds,
            bandwidth=settings.device.bandwidth(settings.torch_dtype),
            memory_case=memory_case,
            say=settings.say,
        )


@torch.no_grad()
def run_case(case: Case, run: SolveRun, say: Say) -> CaseResult:
    """Check every provider's iterates, then time whole solves, the map and the recorded step."""
    say("checking that all do the same work")
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
            else measured_row(provider, case, work[provider.name], seconds, run, ceiling)
            for provider in run.providers
        ),
        steps_recorded=tuple(
            _step_row(variant, case, recorded[variant.name].work, seconds, run, ceiling)
            for variant in run.variants
            if variant.name in recorded
        ),
    )


def _record(
    case: Case, anchor: Anchor, run: SolveRun
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


def _solve_calls(case: Case, work: Mapping[str, Work], run: SolveRun) -> dict[str, Timed]:
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


def _step_row(
    variant: Variant, case: Case, work: Work, seconds: "Seconds", run: SolveRun, ceiling: Spread
) -> StepRow:
    if work.refusal is not None:
        return StepRow(variant.name, "refused", work.refusal)
    replays, maps = seconds[_RECORDED_STEP + variant.name], seconds[_RECORDED_MAP]
    return measured_step(variant, case, replays, maps, run, ceiling)


def measure_memory(case: Case, run: SolveRun, say: Say) -> MemoryResult:
    """The peak memory of one solve, for every provider."""
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
                reason = failure(error)
        rows.append(MemoryRow(provider.name, peak, reason))
    return MemoryResult(
        case=case.name, state_bytes=case.batch * case.dim * run.dtype.itemsize, rows=tuple(rows)
    )
