"""One case: check the answers, time in interleaved rounds, put the numbers together."""

from __future__ import annotations

from typing import Any

import torch

from ..arithmetic import ArithmeticProbe
from ..contention import OtherLoad
from ..provider import OURS, Provider
from ..run import Run, Say, Settings
from ..timing import Timed, time_interleaved
from .cases import CellCase
from .cell_report import CaseResult
from .checks import Work, check_answer
from .equation_row import Row, measured_row
from .problem import Direction, make_problem
from .providers import Solve


@torch.no_grad()
def run_case(case: CellCase, run: Run, say: Say) -> CaseResult:
    """Check every provider's answers to both equations, then time whole solves."""
    settings, providers, binds, absent = run.settings, run.providers, run.loaded, run.absent
    say("checking the answers against those of float64")
    problem, anchors = make_problem(case)
    rounded = problem.to(settings.torch_dtype, settings.device.torch_device)
    work: dict[tuple[str, Direction], Work] = {}
    launches: dict[tuple[str, Direction], tuple[str, ...] | None] = {}
    calls: dict[str, Timed] = {}
    for provider in providers:
        if provider.name in absent:
            continue
        for direction in Direction:
            try:
                with provider.context():
                    solve = binds[provider.name](rounded, direction)
                    answer = solve()
                    launches[provider.name, direction] = settings.device.launches(solve)
                found = check_answer(answer, solve.steps, direction, problem, anchors[direction])
            except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
                found = Work.of_failure(error)
            work[provider.name, direction] = found
            if found.refusal is None:
                calls[_label(provider.name, direction)] = _timed(solve, provider, settings)
    other_load, probe = OtherLoad(), ArithmeticProbe(settings.device.name)
    everything = {**calls, **probe.calls}
    seconds = time_interleaved(everything, rounds=settings.rounds, say=say) if calls else {}
    other_load_cores = other_load.cores()
    rows = {
        direction: tuple(
            Row(provider.name, "absent", absent[provider.name])
            if provider.name in absent
            else measured_row(
                provider.name,
                work[provider.name, direction],
                launches.get((provider.name, direction)),
                seconds.get(_label(provider.name, direction)),
                seconds.get(_label(OURS, direction)),
            )
            for provider in providers
        )
        for direction in Direction
    }
    return CaseResult(
        name=case.name,
        graphs=case.graphs,
        nodes=problem.nodes,
        features=case.features,
        entries=len(problem.values),
        other_load_cores=other_load_cores,
        arithmetic_cores=probe.cores(seconds),
        **{direction.value: found for direction, found in rows.items()},
    )


def _label(provider: str, direction: Direction) -> str:
    return f"{provider} {direction.value}"


def _timed(solve: Solve, provider: Provider[Any], settings: Settings) -> Timed:
    return Timed(solve, settings.device.solve_clock, provider.context)
