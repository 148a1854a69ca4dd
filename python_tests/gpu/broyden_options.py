"""One Broyden step with each of its options, against the reference in float64."""

from __future__ import annotations

from typing import Protocol

import torch

from deq_kernels.ops.termination import Counter, Norm
from python_tests.gpu.against_float64 import check_broyden_step
from python_tests.gpu.engines import Engine
from python_tests.gpu.states import FATES, broyden_state

FULL, ADVANCES = FATES.index("full history"), FATES.index("advances")
LAST = FATES.index("last evaluation")


class OptionCheck(Protocol):
    """One of the checks below."""

    def __call__(
        self, engine: Engine, dim: int, dtype: torch.dtype, history_dtype: torch.dtype
    ) -> None: ...


def check_dropping_step(
    engine: Engine,
    dim: int,
    dtype: torch.dtype,
    history_dtype: torch.dtype,
    *,
    finish_inverse: bool = True,
) -> None:
    """A full history that goes on, and one that stops, next to samples with room left."""
    state = broyden_state(dim, dtype, history_dtype, counts=(1, 2, 3, 5))
    assert state.counters[[FULL, LAST], Counter.COUNT].tolist() == [5, 2]
    state.counters[LAST, Counter.COUNT] = 0
    last = broyden_state(dim, dtype, history_dtype, counts=(5,))
    assert state.directions is not None
    assert state.algebra is not None
    assert last.directions is not None
    assert last.algebra is not None
    state.counters[LAST, Counter.COUNT] = 5
    state.directions[LAST], state.algebra[LAST] = last.directions[LAST], last.algebra[LAST]
    after = check_broyden_step(engine, state, drop_oldest=True, finish_inverse=finish_inverse)
    assert after.directions is not None
    assert after.counters[[FULL, LAST], Counter.COUNT].tolist() == [5, 5]
    moved = torch.equal(after.directions[LAST, 0], state.directions[LAST, 1])
    assert moved == finish_inverse


def check_estimating_step(
    engine: Engine, dim: int, dtype: torch.dtype, history_dtype: torch.dtype
) -> None:
    """A residual that the first step has shrunk, one it has turned, one estimated before."""
    state = broyden_state(dim, dtype, history_dtype, counts=(1,))
    assert state.directions is not None
    assert state.algebra is not None
    turned, known = FATES.index("advances, no new best"), FULL
    state.counters[known, Counter.COUNT], state.counters[known, Counter.ESTIMATES] = 1, 1
    p, r = state.directions[:, 0], state.f_z - state.z
    p[ADVANCES] = (0.8 * (r[ADVANCES] / 0.3)).to(history_dtype)  # y = -0.7 r_0
    p[turned] = (0.8 * (r[turned] / 1.5)).to(history_dtype)  # y = 0.5 r_0
    after = check_broyden_step(engine, state, estimate_gamma=True)
    gamma = after.tables.norms[:, Norm.GAMMA]
    assert abs(gamma[ADVANCES] - 0.9 * 0.8 / 0.7) < 0.02
    assert (gamma[[turned, known]] == 0.8).all()
    count, estimates = (after.counters[:, column] for column in (Counter.COUNT, Counter.ESTIMATES))
    assert count[[ADVANCES, turned, known]].tolist() == [1, 2, 2]
    assert estimates[[ADVANCES, turned, known]].tolist() == [1, 1, 1]


def check_searching_step(
    engine: Engine, dim: int, dtype: torch.dtype, history_dtype: torch.dtype
) -> None:
    """Residuals accepted, too large by much or little, not finite, and shortened enough."""
    state = broyden_state(dim, dtype, history_dtype, counts=(2, 3))
    base, backtracks = state.tables.norms[:, Norm.BASE], state.counters[:, Counter.BACKTRACKS]
    little, enough = FATES.index("advances, no new best"), FULL
    base[ADVANCES] /= 5.0
    base[little] /= 1.2
    base[enough] /= 5.0
    backtracks[ADVANCES], backtracks[enough] = 1, 2
    after = check_broyden_step(engine, state, max_backtracks=2)
    assert after.algebra is not None
    infinite = [FATES.index(f"not finite{rest}") for rest in (", goes back", " again, diverges")]
    assert after.counters[[ADVANCES, little, *infinite], Counter.BACKTRACKS].tolist() == [
        2,
        1,
        1,
        1,
    ]
    assert after.counters[enough, Counter.BACKTRACKS] == 0
    count = state.counters[:, Counter.COUNT]
    steps = [float(after.algebra[i, count[i] - 1, -2]) for i in (ADVANCES, little, *infinite)]
    torch.testing.assert_close(steps[0], 0.09, rtol=1e-6, atol=0.0)
    assert 0.09 < steps[1] <= 0.45
    torch.testing.assert_close(steps[2:], [0.09, 0.09], rtol=1e-6, atol=0.0)


def check_scaled_step(
    engine: Engine, dim: int, dtype: torch.dtype, history_dtype: torch.dtype
) -> None:
    """Residuals of 1e-27: where a history begins, and where directions are stored with a scale."""
    size = 2.0**-90
    state = broyden_state(dim, dtype, history_dtype, scale=2.0**89)
    for tensor in (state.f_z, state.z, state.best_z, state.record):
        tensor *= size
    state.tables.norms[:, [Norm.GAMMA, Norm.SCALE]] /= size
    beginning = [FATES.index("first evaluation"), FULL]
    for drop_oldest in (False, True):
        after = check_broyden_step(engine, state, max_backtracks=2, drop_oldest=drop_oldest)
        scale = after.tables.norms[:, Norm.SCALE] * size
        assert (scale[beginning[: 1 if drop_oldest else 2]].log2() >= 0.0).all()
        assert scale[ADVANCES] == 0.5
