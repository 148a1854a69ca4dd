"""The step alone: whole solves recorded as one CUDA graph, and the map alone recorded likewise.

A replay has no launches from Python and no waiting, so that the difference of the two is what the
kernels of the step cost. Both graphs begin by setting the state back to the start.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deq_kernels.ops import broyden
from deq_kernels.ops.termination import Tables

from ..device import Device
from ..provider import OURS
from .cases import Case
from .checks import Anchor, Work, compare
from .problem import Problem, make_problem
from .providers import SolveProvider

if TYPE_CHECKING:
    from ..run import ForceRegime

REGIMES = ("block", "cluster", "grid")


@dataclass(frozen=True)
class Variant:
    """One way to run the step.

    Attributes:
        name: its name in the report.
        provider: the provider of this package whose step it is.
        regime: entered while the step is recorded, besides the provider's context.
    """

    name: str
    provider: SolveProvider
    regime: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True)
class Captured:
    """A recorded solve.

    Attributes:
        work: what a replay of it did.
        replay: replays it.
    """

    work: Work
    replay: Callable[[], object] | None


def variants_of(
    providers: Sequence[SolveProvider], force_regime: "ForceRegime | None"
) -> tuple[Variant, ...]:
    """The steps to record: those of the providers that have one, and of ours in each regime.

    Args:
        providers: those that are measured.
        force_regime: makes the native kernels take the regime of a name inside a `with` block,
            where the sizes allow it; without it no regime is forced.
    """
    variants = [Variant(provider.name, provider) for provider in providers if provider.has_step]
    ours = next((provider for provider in providers if provider.name == OURS), None)
    if force_regime is not None and ours is not None:
        variants += [
            Variant(f"{OURS}-{name}", ours, partial(force_regime, name)) for name in REGIMES
        ]
    return tuple(variants)


def capture_map(case: Case, device: Device, *, dtype: torch.dtype) -> Callable[[], object] | None:
    """Record the evaluations of the map in one solve; None where nothing can be recorded."""
    problem = make_problem(case, dtype=dtype, device=device.torch_device)
    solve = _Solve(problem, case, history_length=1)
    return device.capture(solve.evaluate)


def capture_step(
    variant: Variant, case: Case, anchor: Anchor, device: Device, *, dtype: torch.dtype
) -> Captured:
    """Record the whole solve of a variant, replay it once and hold the result to the anchor.

    A variant that raises an error is refused with that error.
    """
    provider = variant.provider
    problem = make_problem(case, dtype=dtype, device=device.torch_device)
    history_dtype = torch.bfloat16 if provider.history_itemsize == 2 else None
    try:
        with provider.context(), variant.regime():
            solve = _Solve(problem, case, history_length=case.steps, history_dtype=history_dtype)
            replay = device.capture(solve.run)
        assert replay is not None, "the map was recorded on the same device"
        solve.best_z.fill_(torch.nan)  # only the replay may write the result
        replay()
        work = compare(provider, solve.best_z, case.evaluations, case, anchor, dtype=dtype)
    except (RuntimeError, TypeError, ValueError) as error:
        return Captured(Work.of_failure(error), None)
    return Captured(work, replay if work.refusal is None else None)


class _Solve:
    """The tensors of one solve, and the work that is recorded."""

    def __init__(
        self,
        problem: Problem,
        case: Case,
        *,
        history_length: int,
        history_dtype: torch.dtype | None = None,
    ) -> None:
        self._problem = problem
        self._case = case
        self._z = problem.z0.clone()
        self.best_z = torch.empty_like(self._z)
        self._tables = Tables.new(case.batch, case.evaluations, self._z.device)
        history = broyden.History.new(self._z, history_length, history_dtype)
        self._step = broyden.bind_step(
            self._z,
            self.best_z,
            history,
            self._tables,
            rtol=0.0,
            atol=0.0,
            damping=1.0,
            gamma=1.0,
            stall_steps=0,
            divergence_factor=1e6,
            finish_inverse=False,
        )

    def run(self) -> None:
        """Set the state back, then evaluate and step."""
        self._each(self._step)

    def evaluate(self) -> None:
        """Set the state back, then only evaluate."""
        self._each(lambda f_z: None)

    def _each(self, step: Callable[[Tensor], None]) -> None:
        self._z.copy_(self._problem.z0)
        self._tables.counters.zero_()
        self._tables.active.fill_(self._case.batch)
        for _ in range(self._case.evaluations):
            step(self._problem.f(self._z))
