"""Nothing is timed before it is shown to do the same work: equal evaluations, equal iterates."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..provider import failure
from .cases import Case
from .problem import AffineMap, make_problem
from .providers import SolveProvider

if TYPE_CHECKING:
    from .providers import Solve


@dataclass(frozen=True)
class Tolerance:
    """What counts as the same trajectory for a dtype.

    Attributes:
        iterate: largest relative difference of the returned iterates, per sample.
        residual: largest relative difference of their residual norms, per sample.
        rounding: a relative residual below this is too near rounding for a comparison.
    """

    iterate: float
    residual: float
    rounding: float


TOLERANCES = {
    torch.float32: Tolerance(iterate=1e-4, residual=5e-2, rounding=1e-5),
    torch.float64: Tolerance(iterate=1e-9, residual=1e-6, rounding=1e-11),
}
# Directions rounded to bfloat16 are a different trajectory of the same quality: the residual norm
# may be at most this factor above the one with directions in the dtype of the state.
ROUNDED_HISTORY_RESIDUAL_FACTOR = 1.25


@dataclass(frozen=True)
class Anchor:
    """The solution that all providers are compared with: plain PyTorch in float64.

    Attributes:
        f: the map in float64.
        z: the best iterates, [batch, dim], float64.
        residual_norm: their residual norms, [batch], float64.
        relative_residual: the smallest residual norm over norm of z in the batch.
    """

    f: AffineMap
    z: Tensor
    residual_norm: Tensor
    relative_residual: float


@dataclass(frozen=True)
class Work:
    """What one solve of a provider did, and why it may not be timed.

    Attributes:
        evaluations: how often it evaluated the map; None where it failed.
        iterate_difference: largest relative difference to the anchor over the batch.
        residual_ratio: largest residual norm over the anchor's.
        refusal: why the provider does not do the same work, or None.
    """

    evaluations: int | None
    iterate_difference: float
    residual_ratio: float
    refusal: str | None

    @classmethod
    def of_failure(cls, error: Exception) -> "Work":
        """That of a provider that raised an error."""
        return cls(None, math.nan, math.nan, failure(error))


def make_anchor(case: Case, *, dtype: torch.dtype, device: torch.device | None = None) -> Anchor:
    """Solve the case in float64 for comparison, on the CPU unless another device is given.

    Raises:
        ValueError: the case converges to rounding in ``dtype``, where iterates of any solver
            agree and nothing would be checked.
    """
    problem = make_problem(case, dtype=torch.float64, device=device)
    z = case.reference(problem.f, problem.z0)
    residual_norm = problem.f.residual_norm(z)
    relative = (residual_norm / torch.linalg.vector_norm(z, dim=1)).min().item()
    rounding = TOLERANCES[dtype].rounding
    if relative < rounding:
        raise ValueError(
            f"the residual of a case must stay above {rounding:g} in {dtype} for its iterates to "
            f"be compared, but that of {case.name} falls to {relative:.1e}; take fewer steps"
        )
    return Anchor(f=problem.f, z=z, residual_norm=residual_norm, relative_residual=relative)


def check_work(
    provider: SolveProvider, solve: "Solve", case: Case, anchor: Anchor, *, dtype: torch.dtype
) -> Work:
    """Run a provider once, untimed, and hold what it did against the anchor.

    A solve that raises an error is refused with that error: the others are measured nevertheless.
    """
    problem = make_problem(case, dtype=dtype, device=anchor.z.device, count_on_device=True)
    try:
        with provider.context():
            z = solve(problem.f, problem.z0, case.steps)
        evaluations = problem.f.evaluations
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        return Work.of_failure(error)
    return compare(provider, z, evaluations, case, anchor, dtype=dtype)


def compare(
    provider: SolveProvider,
    z: Tensor,
    evaluations: int,
    case: Case,
    anchor: Anchor,
    *,
    dtype: torch.dtype,
) -> Work:
    """Hold the iterates and the number of evaluations of a solve against the anchor."""
    if z.shape != anchor.z.shape:
        raise ValueError(
            f"provider {provider.name} must return {list(anchor.z.shape)} but returned "
            f"{list(z.shape)}"
        )
    z = z.double()
    expected = anchor.f.image(anchor.z) if provider.returns_image else anchor.z
    difference = torch.linalg.vector_norm(z - expected, dim=1)
    iterate_difference = (difference / torch.linalg.vector_norm(expected, dim=1)).max().item()
    ratio = anchor.f.residual_norm(z) / anchor.f.residual_norm(expected)
    return Work(
        evaluations=evaluations,
        iterate_difference=iterate_difference,
        residual_ratio=ratio.max().item(),
        refusal=_refusal(
            provider,
            case,
            TOLERANCES[dtype],
            evaluations=evaluations,
            iterate_difference=iterate_difference,
            residual_ratios=ratio,
        ),
    )


def _refusal(
    provider: SolveProvider,
    case: Case,
    tolerance: Tolerance,
    *,
    evaluations: int,
    iterate_difference: float,
    residual_ratios: Tensor,
) -> str | None:
    # Every bound is written so that a NaN fails it.
    if evaluations != case.evaluations:
        return f"evaluated the map {evaluations} times instead of {case.evaluations}"
    if provider.history_itemsize is not None:
        bound = ROUNDED_HISTORY_RESIDUAL_FACTOR
        if not bool((residual_ratios <= bound).all()):
            return f"residual {residual_ratios.max():.3g} times the exact one, above {bound:g}"
        return None
    if not iterate_difference <= tolerance.iterate:
        return f"iterates differ by {iterate_difference:.1e}, above {tolerance.iterate:g}"
    residual_difference = (residual_ratios - 1).abs()
    if not bool((residual_difference <= tolerance.residual).all()):
        return f"residuals differ by {residual_difference.max():.1e}, above {tolerance.residual:g}"
    return None
