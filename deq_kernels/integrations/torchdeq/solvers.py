"""torchdeq's solvers: its names, signatures and results, on this package's kernels."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import Tensor

from deq_kernels.integrations.anderson import anderson_visits
from deq_kernels.integrations.torchdeq.record import Info, Record, with_batch
from deq_kernels.inverse import InverseJacobian
from deq_kernels.ops.norms import norm
from deq_kernels.options import check_callback, check_flag, check_not_negative, check_option
from deq_kernels.solvers import Broyden, FixedPoint
from deq_kernels.solvers.machinery.stepwise import StepwiseSolve, never_done

Map = Callable[[Tensor], Tensor]
Result = tuple[Tensor, list[Tensor], Info]
OnInverse = Callable[[InverseJacobian], None]


def broyden(
    func: Map,
    x0: Tensor,
    max_iter: int = 50,
    tol: float = 1e-3,
    stop_mode: str = "abs",
    indexing: Collection[int] | None = None,
    LBFGS_thres: int | None = None,
    ls: bool = False,
    return_final: bool = False,
    *,
    on_inverse: OnInverse | None = None,
) -> Result:
    """torchdeq's `broyden_solver` in fused steps: one stored vector per step instead of two.

    Args:
        func: f, a map of states [B, ...]; in a state of fewer than two dimensions each element is a
            sample.
        x0: the start, float64, float32, float16 or bfloat16. It is evaluated, but not one of the
            iterates that the best is chosen from.
        max_iter: steps; f is evaluated at most once more.
        tol: the solve ends when the errors of all samples are below it.
        stop_mode: "abs", ‖f(z) − z‖₂, or "rel", ‖f(z) − z‖₂ / (‖f(z)‖₂ + 1e-9), per sample.
        indexing: the best iterates after this many evaluations of f are returned, that at x0
            counted.
        LBFGS_thres: Broyden factors kept; None for all.
        ls: shorten steps after which a sample's residual has grown; see the module.
        return_final: take all steps, and return the last iterates instead of the best.
        on_inverse: called with the estimate of (J − I)⁻¹ at the end, as SHINE needs it. Without it
            none is finished.

    Returns:
        The best iterates, like x0; the states of `indexing`; and the statistics: abs_lowest,
        rel_lowest, nstep [B], abs_trace, rel_trace [B, max_iter + 1], whose column 0 is 1e8, and
        sradius.

    Raises:
        ValueError: an option is out of its range.
        TypeError: an option is unknown, or x0 or f(z) is no state.
    """
    _check(max_iter, tol, return_final, on_inverse)
    check_flag("ls", ls)
    solver = never_done(
        Broyden,
        history_length=LBFGS_thres,
        when_full="drop_oldest",
        line_search="derivative_free" if ls else None,
        max_steps=max_iter + 1,
    )
    start = with_batch(x0)
    with torch.inference_mode(False), torch.no_grad():
        walk = StepwiseSolve(
            solver, _reshaped(func, x0), start, keep_inverse=on_inverse is not None
        )
        record = Record(
            walk.z, tol=tol, stop_mode=stop_mode, indexing=indexing, return_final=return_final
        )
        if max_iter:
            walk.advance()
        for step in range(1, max_iter + 1):
            visit = walk.advance()
            if record.add(visit, visit.z, step, index=step + 1):
                break
        if on_inverse is not None:
            inverse = walk.inverse()
            assert inverse is not None
            on_inverse(inverse)
        info = record.info(max_iter + 1, x0.dtype)
        return record.best.view(x0.shape), record.states(x0.shape), info


def anderson(
    func: Map,
    x0: Tensor,
    max_iter: int = 50,
    tol: float = 1e-3,
    stop_mode: str = "abs",
    indexing: Collection[int] | None = None,
    m: int = 6,
    lam: float = 1e-4,
    tau: float = 1.0,
    return_final: bool = False,
) -> Result:
    """torchdeq's `anderson_solver`: the images f(z) of Anderson-accelerated iterates.

    Args:
        func: see `broyden`.
        x0: see `broyden`.
        max_iter: evaluations of f; two are made in any case.
        tol: see `broyden`.
        stop_mode: see `broyden`.
        indexing: the best images after this many evaluations are returned.
        m: evaluations combined, at least 2.
        lam: the ridge on the weights, absolute; `deq_kernels.Anderson` has a relative one.
        tau: the damping β.
        return_final: see `broyden`.

    Returns:
        As `broyden`, but f(z) instead of z, and traces [B, max(1, max_iter − 1)]: the first two
        evaluations are in no trace.

    Raises:
        ValueError: an option is out of its range.
        TypeError: an option is unknown, or x0 or f(z) is no state.
    """
    _check(max_iter, tol, return_final, None)
    start = with_batch(x0)
    with torch.inference_mode(False), torch.no_grad():
        record = Record(
            start.flatten(1) if start.dim() > 1 else start[:, None],
            tol=tol,
            stop_mode=stop_mode,
            indexing=indexing,
            return_final=return_final,
        )
        visits = anderson_visits(
            _reshaped(func, x0),
            start,
            history_length=m,
            ridge=lam,
            damping=tau,
            evaluations=max_iter,
        )
        for number, visit in enumerate(visits, start=1):
            if number > 2 and record.add(visit, visit.f_z, number, index=number):
                break
        info = record.info(max(1, max_iter - 1), x0.dtype)
        return record.best.view(x0.shape), record.states(x0.shape), info


def fixed_point_iter(
    func: Map,
    x0: Tensor,
    max_iter: int = 50,
    tol: float = 1e-3,
    stop_mode: str = "abs",
    indexing: Collection[int] | None = None,
    tau: float = 1.0,
    return_final: bool = False,
) -> Result:
    """torchdeq's `fixed_point_iter`, z ← τ f(z) + (1 − τ) z, in fused steps.

    Args:
        func: see `broyden`.
        x0: see `broyden`.
        max_iter: evaluations of f.
        tol: see `broyden`.
        stop_mode: see `broyden`; errors are those of the damped step, τ ‖f(z) − z‖₂.
        indexing: the best iterates after this many evaluations are returned.
        tau: the damping, above 0 and at most 2.
        return_final: see `broyden`.

    Returns:
        As `broyden`, but the iterate after the evaluation whose error is smallest.

    Raises:
        ValueError: an option is out of its range.
        TypeError: an option is unknown, or x0 or f(z) is no state.
    """
    _check(max_iter, tol, return_final, None)
    # One more than is used: the last evaluation moves z as well.
    solver = never_done(FixedPoint, damping=tau, max_steps=max_iter + 1)
    start = with_batch(x0)
    with torch.inference_mode(False), torch.no_grad():
        walk = StepwiseSolve(solver, _reshaped(func, x0), start, keep_inverse=False)
        record = Record(
            walk.z, tol=tol, stop_mode=stop_mode, indexing=indexing, return_final=return_final
        )
        for step in range(1, max_iter + 1):
            visit = walk.advance()
            visit = replace(visit, f_norm=norm(walk.z))
            if record.add(visit, walk.z, step, index=step, scale=tau):
                break
        info = record.info(max_iter + 1, x0.dtype)
        return record.best.view(x0.shape), record.states(x0.shape), info


SAME_SOLVERS: dict[str, Callable[..., Result]] = {
    "broyden": broyden,
    "anderson": anderson,
    "fixed_point_iter": fixed_point_iter,
}
"""torchdeq's names of the solvers above."""


def _reshaped(func: Map, x0: Tensor) -> Map:
    """func, which knows states without dimensions, on states that have one."""
    if x0.dim() > 0:
        return func
    return lambda z: func(z.view(())).reshape(1)


def _check(max_iter: object, tol: object, return_final: object, on_inverse: object) -> None:
    valid = isinstance(max_iter, int) and not isinstance(max_iter, bool) and max_iter >= 0
    check_option("max_iter", max_iter, valid, "a whole number, at least 0")
    check_not_negative("tol", tol)
    check_flag("return_final", return_final)
    check_callback("on_inverse", on_inverse)
