"""A diagnosis as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deq_kernels.diagnostics.diagnosis import Diagnosis, EstimatorReport

TOLERANCE = 1e-3
"""Adjoint residual up to which the reference counts as exact in the table."""

_COLUMNS = (
    "estimator",
    "w: cosine",
    "lowest",
    "norm ratio",
    "residual",
    "θ: cosine",
    "norm ratio",
    "VJPs",
    "evals",
)
_NOTES = (
    "w: adjoint vector, mean over the samples, residual ‖ℓ + Jᵀw − w‖ / ‖ℓ‖ at most;",
    "θ: gradient over all parameters; VJPs: products with Jᵀ; evals: recorded evaluations of f.",
)


def format_diagnosis(diagnosis: Diagnosis) -> str:
    """The solve, the Jacobian, the reference, and a row per estimator."""
    sizes = f"{diagnosis.batch} sample(s), d = {diagnosis.dim}, {diagnosis.dtype}"
    lines = [f"DEQ on {sizes}, {diagnosis.parameters:,} parameter(s)"]
    if diagnosis.batch == 0:
        return lines[0]
    lines += [*_solve_lines(diagnosis), *_jacobian_lines(diagnosis)]
    exact = diagnosis.exact
    lines.append(
        f"exact      {exact.name}: {exact.vjps} VJPs, residual {_largest(exact.adjoint_residual)}"
    )
    inexact = sum(not value <= TOLERANCE for value in exact.adjoint_residual)
    if inexact:
        lines.append(
            f"           THE REFERENCE IS NOT EXACT: residual above {TOLERANCE:g} for {inexact} "
            "sample(s), for which the comparison means little; give another `exact`"
        )
    measured = [row for row in diagnosis.estimators if row.skipped is None]
    lines += ["", *_align([_COLUMNS, *map(_cells, measured)])]
    lines += [
        f"  {row.name}: not measured: {row.skipped}"
        for row in diagnosis.estimators
        if row.skipped is not None
    ]
    return "\n".join([*lines, "", *_NOTES])


def _solve_lines(diagnosis: Diagnosis) -> list[str]:
    forward = diagnosis.forward
    counts = Counter(forward.status)
    status = ", ".join(f"{count} {name}" for name, count in counts.items())
    relative = [
        distance / norm if norm else math.nan
        for distance, norm in zip(forward.distance, forward.norm, strict=True)
    ]
    return [
        f"solver     {forward.solver}",
        f"solve      {status}; steps {_mean(forward.steps):.1f} on average, at most "
        f"{max(forward.steps)}; residual {_largest(forward.residual)}, "
        f"times {_mean(forward.reduction):.3f} per evaluation",
        f"distance   ‖z* − z0‖ = {_mean(forward.distance):.3g}, "
        f"{_mean(relative):.2f} of ‖z*‖ on average",
    ]


def _jacobian_lines(diagnosis: Diagnosis) -> list[str]:
    jacobian = diagnosis.jacobian
    radius = jacobian.spectral_radius
    expanding = sum(value >= 1 for value in radius)
    sure = "" if all(jacobian.converged) else f", estimate settled for {sum(jacobian.converged)}"
    return [
        f"Jacobian   spectral radius {min(radius):.3f} to {max(radius):.3f}, at least 1 for "
        f"{expanding} of {diagnosis.batch}{sure}"
    ]


def _cells(row: EstimatorReport) -> tuple[str, ...]:
    return (
        row.name,
        f"{_mean(row.adjoint_cosine):.4f}",
        f"{min(row.adjoint_cosine, default=math.nan):.4f}",
        f"{_mean(row.adjoint_norm_ratio):.3f}",
        f"{max(row.adjoint_residual, default=math.nan):.1e}",
        "-" if row.parameter_cosine is None else f"{row.parameter_cosine:.4f}",
        "-" if row.parameter_norm_ratio is None else f"{row.parameter_norm_ratio:.3f}",
        str(row.vjps),
        str(row.evaluations),
    )


def _mean(values: Sequence[float]) -> float:
    """Mean over those that are numbers."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _largest(values: Sequence[float]) -> str:
    return f"at most {max(values, default=math.nan):.1e}"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
