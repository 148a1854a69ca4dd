"""One case: check the gradients, time in interleaved rounds, put the numbers together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch.nn import functional as F

from ..arithmetic import ArithmeticProbe
from ..contention import OtherLoad
from ..device import Device
from ..provider import OURS, Provider, ProviderAbsentError, failure
from ..run import Run, Say
from ..timing import Timed, time_interleaved
from .cases import StepCase
from .problem import StepProblem, make_problem
from .providers import Bind, Step
from .step_row import Row, with_times
from .training_report import CaseResult

LEAST_COSINE = 0.99
"""Solves to 1e-3 leave this much room between gradients of the same kind."""


def run_case(case: StepCase, run: Run, say: Say) -> CaseResult:
    """Train the model a little, check all gradients, then time both halves of a step."""
    settings, providers, binds, absent = run.settings, run.providers, run.loaded, run.absent
    say("training the model a little")
    problem = make_problem(case, dtype=settings.dtype, device=settings.device.name)
    say("checking the gradients against that of ours")
    steps, rows = _check(problem, providers, binds, absent)
    calls: dict[str, Timed] = {}
    for provider in providers:
        if rows[provider.name].status == "timed":
            step = steps[provider.name]
            calls[f"{provider.name} forward"] = _timed(step, settings.device, backward=False)
            calls[f"{provider.name} backward"] = _timed(step, settings.device, backward=True)
    load, probe = OtherLoad(), ArithmeticProbe(settings.device.name)
    everything = {**calls, **probe.calls}
    seconds = time_interleaved(everything, rounds=settings.rounds, say=say) if calls else {}
    other_load_cores = load.cores()
    return CaseResult(
        name=case.name,
        parameters=sum(parameter.numel() for parameter in problem.task.model.parameters()),
        other_load_cores=other_load_cores,
        arithmetic_cores=probe.cores(seconds),
        rows=tuple(with_times(rows[provider.name], seconds) for provider in providers),
    )


def _check(
    problem: StepProblem,
    providers: Sequence[Provider[Bind]],
    binds: Mapping[str, Bind],
    absent: Mapping[str, str],
) -> tuple[dict[str, Step], dict[str, Row]]:
    """One step of every provider on the first batch."""
    reference = _first_step(binds.get(OURS), problem)
    steps: dict[str, Step] = {}
    rows: dict[str, Row] = {}
    for provider in providers:
        name = provider.name
        if name in absent:
            rows[name] = Row(name, "absent", absent[name])
            continue
        try:
            step = _first_step(binds[name], problem)
            assert step is not None
        except ProviderAbsentError as error:
            rows[name] = Row(name, "absent", str(error))
            continue
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            rows[name] = Row(name, "refused", failure(error))
            continue
        cosine = 1.0
        if reference is not None:
            cosine = float(F.cosine_similarity(step.gradient(), reference.gradient(), dim=0))
        # Written so that a NaN fails it.
        same = cosine >= LEAST_COSINE
        reason = None if same else f"its gradient has cosine {cosine:.3f} with that of ours"
        steps[name] = step
        rows[name] = Row(
            name,
            "timed" if same else "refused",
            reason,
            steps=step.steps,
            cosine=cosine if cosine == cosine else None,
        )
    return steps, rows


def _first_step(bind: Bind | None, problem: StepProblem) -> Step | None:
    if bind is None:
        return None
    step = bind(problem)
    step.take_batch()
    step.forward()
    step.backward()
    return step


def _timed(step: Step, device: Device, *, backward: bool) -> Timed:
    """One half of a step; the other half runs outside the clock."""

    def clock(call: Callable[[], object], repeats: int) -> float:
        total = 0.0
        for _ in range(repeats):
            step.take_batch()
            if backward:
                step.forward()
                total += device.solve_clock(step.backward, 1)
            else:
                total += device.solve_clock(step.forward, 1)
        return total / repeats

    def once() -> None:
        step.take_batch()
        step.forward()
        if backward:
            step.backward()

    return Timed(once, clock)
