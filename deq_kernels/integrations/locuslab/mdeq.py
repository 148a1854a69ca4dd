"""`modules.broyden` of locuslab/mdeq and of phantom_grad: a solver for g(z) = 0."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deq_kernels.integrations.locuslab.products import matvec, rmatvec
from deq_kernels.integrations.locuslab.whole_batch import (
    PATIENCE,
    BatchWalk,
    protective_factor,
    stuck,
)
from deq_kernels.inverse import InverseJacobian
from deq_kernels.options import check_not_negative

__all__ = ["analyze_broyden", "broyden", "matvec", "rmatvec"]

HISTORY_LENGTH = 27
"""Factors kept at most."""

GROWTH = 1e6
"""Growth of the objective, per element of a channel, at which a solve is given up."""


def broyden(
    g: Callable[[Tensor], Tensor],
    x0: Tensor,
    threshold: int,
    eps: float,
    ls: bool = False,
    name: str = "unknown",
) -> dict[str, Any]:
    """Broyden's method on g(z) = 0 with H₀ = −I, stopped for all samples together.

    Args:
        g: the root map, on states [B, ...].
        x0: the start.
        threshold: largest number of steps, of which the last 27 factors are kept.
        eps: tolerance on ‖g(z)‖ over the whole batch.
        ls: shorten steps after which a sample's residual has grown.
        name: a label; nothing is done with it.

    Returns:
        result, the best iterates, x0 among the candidates; nstep and tnstep, the steps taken;
        lowest_step, that of the result; diff, ‖g‖ there; diff_detail, the norms over dimension 1;
        prot_break, whether ‖g‖ grew 1e6-fold per element of a channel; trace, the list of ‖g‖, and
        new_trace, that of ‖z − z_before‖ / ‖z_before‖, −1 first; eps and threshold.

    Raises:
        ValueError: an option is out of its range.
        TypeError: x0 or g(z) is no state.
    """
    return solve_root(g, x0, threshold, eps, ls)[0]


def solve_root(
    g: Callable[[Tensor], Tensor],
    x0: Tensor,
    threshold: int,
    eps: float,
    ls: bool,
    *,
    keep_inverse: bool = False,
) -> tuple[dict[str, Any], Callable[[], InverseJacobian | None]]:
    """What `broyden` returns, and what makes the inverse estimate at the end of the solve."""
    check_not_negative("eps", eps)
    limit = GROWTH * protective_factor(x0)
    prot_break, lowest, lowest_step, step = False, math.inf, 0, 0
    trace: list[float] = []
    changes: list[float] = []
    with torch.inference_mode(False), torch.no_grad():
        walk = BatchWalk(
            lambda z: g(z) + z,
            x0,
            threshold=threshold,
            history_length=min(threshold, HISTORY_LENGTH),
            ls=ls,
            keep_inverse=keep_inverse,
        )
        before = torch.empty_like(walk.best)
        residual = torch.full_like(walk.best, torch.nan)
        for step, visit in enumerate(walk.visits()):
            objective = walk.objective(visit)
            trace.append(objective)
            changes.append(_relative(visit.z, before) if step else -1.0)
            before.copy_(visit.z)
            if objective < lowest or step == 0:
                lowest, lowest_step = (objective if objective == objective else math.inf), step
                walk.keep(visit)
                torch.sub(visit.f_z, visit.z, out=residual)
            if objective < eps or (step > PATIENCE and stuck(trace, eps)):
                break
            if objective > trace[0] * limit:
                prot_break = True
                break
    residual = residual.view(x0.shape)
    result = {
        "result": walk.best.view(x0.shape),
        "nstep": step,
        "tnstep": step,
        "lowest_step": lowest_step,
        "diff": residual.norm().item(),
        "diff_detail": residual.norm(dim=1),
        "prot_break": prot_break,
        "trace": trace,
        "new_trace": changes,
        "eps": eps,
        "threshold": threshold,
    }
    return result, walk.inverse


def _relative(z: Tensor, before: Tensor) -> float:
    """‖z − before‖ / ‖before‖; infinite from zero, as in 0-dimensional arithmetic of tensors."""
    change, size = (z - before).norm().item(), before.norm().item()
    return change / size if size else change / 1e-9


def analyze_broyden(
    res_info: dict[str, Any],
    err: Any = None,
    judge: bool = True,
    name: str = "forward",
    training: bool = True,
    save_err: bool = False,
) -> Any:
    """Whether something is wrong with a result of `broyden`.

    Args:
        res_info: the result.
        err: not used; theirs is written to a file.
        judge: only say whether something is.
        name: "forward" or "backward", for messages.
        training: not used; part of a file's name there.
        save_err: must be False: nothing is pickled here.

    Returns:
        With `judge` a bool: the steps were used up, the objective grew too far, the result is not
        finite, or no step was better than a bad start. Otherwise (code, message, res_info): 1 for
        a result that is not finite, 2 for no step from a bad start, 3 for one that grew, and −1
        for none of these; the first three also warn.

    Raises:
        ValueError: save_err is True.
    """
    if save_err:
        raise ValueError(
            "save_err must be False, as nothing is pickled here; got True. Save res_info yourself."
        )
    difference, steps = res_info["diff"], res_info["nstep"]
    lost = bool(torch.isnan(res_info["result"]).any())
    at_start = steps == 0 and not difference <= res_info["eps"]
    if judge:
        return steps >= res_info["threshold"] or at_start or res_info["prot_break"] or lost
    code, message = -1, ""
    if lost:
        code, message = 1, f"NaN in the {name} result of Broyden's method; diff {difference}"
    elif at_start:
        code, message = 2, f"no {name} step of Broyden's method was taken; diff {difference}"
    elif res_info["prot_break"]:
        count = len(res_info["trace"])
        code, message = 3, f"{name} solve given up after {count} evaluations; diff {difference}"
    if message:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return code, message, res_info
