"""`lib.solvers` of locuslab/deq: solvers for f(z) = z."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deq_kernels.integrations.anderson import anderson_visits
from deq_kernels.integrations.locuslab.products import matvec, rmatvec
from deq_kernels.integrations.locuslab.whole_batch import (
    PATIENCE,
    BatchWalk,
    protective_factor,
    stuck,
    whole_norm,
)
from deq_kernels.options import check_choice, check_not_negative
from deq_kernels.solvers.machinery.structure import Structure

__all__ = ["anderson", "broyden", "matvec", "rmatvec"]

MODES = ("abs", "rel")
BEFORE = 1e8
"""The objective before anything was evaluated."""


class _Trace:
    """Objectives of the whole batch in both modes, and the lowest."""

    def __init__(self, stop_mode: str, eps: float, threshold: int) -> None:
        check_choice("stop_mode", stop_mode, MODES)
        check_not_negative("eps", eps)
        self._mode, self._eps, self._threshold = stop_mode, eps, threshold
        self.traces: dict[str, list[float]] = {mode: [] for mode in MODES}
        self._lowest = dict.fromkeys(MODES, BEFORE)
        self._step = 0

    @property
    def objectives(self) -> list[float]:
        """The trace in the mode that stops the solve."""
        return self.traces[self._mode]

    def add(self, absolute: float, relative: float, step: int) -> bool:
        """Take in a step, and say whether it is the lowest so far."""
        is_lowest = False
        for mode, error in (("abs", absolute), ("rel", relative)):
            self.traces[mode].append(error)
            if error < self._lowest[mode]:
                self._lowest[mode] = error
                if mode == self._mode:
                    self._step, is_lowest = step, True
        return is_lowest

    def result(self, z: Tensor, *, length: int, prot_break: bool) -> dict[str, Any]:
        """Their dictionary, the traces filled up to `length` with the lowest objectives."""
        for mode, trace in self.traces.items():
            trace += [self._lowest[mode]] * (length - len(trace))
        return {
            "result": z,
            "lowest": self._lowest[self._mode],
            "nstep": self._step,
            "prot_break": prot_break,
            "abs_trace": self.traces["abs"],
            "rel_trace": self.traces["rel"],
            "eps": self._eps,
            "threshold": self._threshold,
        }


def broyden(
    f: Callable[[Tensor], Tensor],
    x0: Tensor,
    threshold: int,
    eps: float = 1e-3,
    stop_mode: str = "rel",
    ls: bool = False,
    name: str = "unknown",
) -> dict[str, Any]:
    """Broyden's method on f(z) − z, stopped for all samples together.

    Args:
        f: map of states.
        x0: a state [B, ...], evaluated but never returned as the best.
        threshold: largest number of steps; all their factors are kept.
        eps: tolerance on the objective.
        stop_mode: "abs", ‖f(z) − z‖ over the whole batch, or "rel", that over ‖f(z)‖ + 1e-9.
        ls: shorten steps after which a sample's residual has grown.
        name: a label; nothing is done with it.

    Returns:
        result, the best iterates; lowest, their objective; nstep, their step; prot_break, whether
        the objective exceeded its first value 1e6 (abs) or 1e3 (rel) times the elements per
        channel; abs_trace and rel_trace, lists of threshold + 1 numbers; eps and threshold.

    Raises:
        ValueError: an option is out of its range.
        TypeError: x0 or f(z) is no state.
    """
    trace = _Trace(stop_mode, eps, threshold)
    prot_break = False
    limit = (1e6 if stop_mode == "abs" else 1e3) * protective_factor(x0)
    with torch.inference_mode(False), torch.no_grad():
        walk = BatchWalk(f, x0, threshold=threshold, history_length=threshold, ls=ls)
        for step, visit in enumerate(walk.visits()):
            if step == 0:
                continue
            absolute = walk.objective(visit)
            if trace.add(absolute, absolute / (walk.image_norm(visit) + 1e-9), step):
                walk.keep(visit)
            objective = trace.objectives[-1]
            if objective < eps or (step > PATIENCE and stuck(trace.objectives, eps)):
                break
            if objective > trace.objectives[0] * limit:
                prot_break = True
                break
    z = walk.best.view(x0.shape)
    return trace.result(z, length=threshold + 1, prot_break=prot_break)


def anderson(
    f: Callable[[Tensor], Tensor],
    x0: Tensor,
    m: int = 6,
    lam: float = 1e-4,
    threshold: int = 50,
    eps: float = 1e-3,
    stop_mode: str = "rel",
    beta: float = 1.0,
) -> dict[str, Any]:
    """Anderson acceleration with an absolute ridge, stopped for all samples together.

    Args:
        f: map of states.
        x0: a state [B, ...].
        m: evaluations combined, at least 2.
        lam: the ridge.
        threshold: evaluations of f; two are made in any case.
        eps: tolerance on the objective.
        stop_mode: "abs", ‖f(z) − z‖ over the whole batch, or "rel", that over 1e-5 + ‖f(z)‖.
        beta: the damping.

    Returns:
        As `broyden`; the traces hold max(0, threshold − 2) numbers, as the first two evaluations
        are in none, and prot_break is False.

    Raises:
        ValueError: an option is out of its range.
        TypeError: an option is unknown, or x0 or f(z) is no state.
    """
    trace = _Trace(stop_mode, eps, threshold)
    with torch.inference_mode(False), torch.no_grad():
        best = Structure.of(x0, "x0").flatten(x0)
        visits = anderson_visits(
            f, x0, history_length=m, ridge=lam, damping=beta, evaluations=threshold
        )
        for number, visit in enumerate(visits):
            if bool(visit.diverged.all()):
                break
            if number < 2:
                continue
            absolute, image = (
                whole_norm(norms.masked_fill(visit.diverged, 0.0))
                for norms in (visit.residual, visit.f_norm)
            )
            if trace.add(absolute, absolute / (1e-5 + image), number):
                best = torch.where(visit.diverged[:, None], best, visit.z)
            if trace.objectives[-1] < eps:
                break
        z = best.reshape(x0.shape).clone()
    return trace.result(z, length=max(0, threshold - 2), prot_break=False)
