"""Every gradient behind every solver on every problem, against dense algebra in float64.

The loss is ⟨ℓ, z*⟩ and the parameter is added to f, so that its gradient is w itself.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from python_tests.problems import Case, DenseBroyden, table_of_problems
from python_tests.solvers.test_table import EXCEPTIONS, SOLVERS, TABLE, TOLERANCE, jacobians

STEPS, DAMPING = 6, 0.5
Expected = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From J [d, d], ℓ [d] and H ≈ (J − I)⁻¹ [d, d] to w [d]."""


def exact(jacobian: Tensor, cotangent: Tensor, inverse: Tensor) -> Tensor:
    eye = torch.eye(len(cotangent), dtype=torch.float64)
    return torch.linalg.solve(eye - jacobian.T, cotangent)


def damped_series(jacobian: Tensor, cotangent: Tensor, inverse: Tensor) -> Tensor:
    """w ← λ ℓ + λ Jᵀ w + (1 − λ) w from zero (PG, equation 17)."""
    w = torch.zeros_like(cotangent)
    for _ in range(STEPS):
        w = DAMPING * (cotangent + jacobian.T @ w) + (1.0 - DAMPING) * w
    return w


def shine(jacobian: Tensor, cotangent: Tensor, inverse: Tensor) -> Tensor:
    return -inverse.T @ cotangent


def broyden_steps(from_cotangent: bool) -> Expected:
    """`STEPS` Broyden steps on w = Jᵀ w + ℓ; the last one counts where the residual was falling."""

    def steps(jacobian: Tensor, cotangent: Tensor, inverse: Tensor) -> Tensor:
        start = cotangent if from_cotangent else torch.zeros_like(cotangent)
        run = DenseBroyden.run(lambda w: jacobian.T @ w + cotangent, start, STEPS)
        sizes = [float(residual.norm()) for residual in run.residuals[:STEPS]]
        best = sizes.index(min(sizes))
        return run.iterates[STEPS if best == STEPS - 1 else best]

    return steps


# The tolerance is what the error of z* and rounding amount to on the worst-conditioned problem.
GRADIENTS: dict[str, tuple[dk.Gradient, Expected, float]] = {
    "Implicit": (
        dk.Implicit(solver=dk.Broyden(max_steps=200, rtol=1e-12, stall_steps=None)),
        exact,
        1e-6,
    ),
    "Implicit by GMRES": (dk.Implicit(solver=dk.GMRES(max_steps=60, rtol=1e-10)), exact, 1e-6),
    "Adaptive": (dk.Adaptive(tolerance=1e-10, max_steps=60), exact, 1e-6),
    "JacobianFree": (dk.JacobianFree(), lambda jacobian, cotangent, inverse: cotangent, 0.0),
    "JacobianFree refined": (dk.JacobianFree(refine=STEPS), broyden_steps(True), 1e-5),
    "Limited": (dk.Limited(steps=STEPS), broyden_steps(False), 1e-5),
    "Neumann": (dk.Neumann(steps=STEPS, damping=DAMPING), damped_series, 1e-6),
    "Shine": (dk.Shine(), shine, 1e-9),
    "Unrolled": (dk.Unrolled(steps=STEPS, damping=DAMPING), damped_series, 1e-4),
}


# Its Jacobian is of norm 9e4: the states unrolled from a solution that is not exact leave it.
LEAVES = ("F4", "Unrolled")


def rows() -> list[tuple[str, str, str]]:
    """What converges, with every gradient that its solver can serve."""
    return [
        (solver, problem, name)
        for solver, problem in TABLE
        if (solver, problem) not in EXCEPTIONS
        for name, (gradient, _, _) in GRADIENTS.items()
        if (SOLVERS[solver].builds_inverse or not gradient.needs_inverse)
        and (problem, name) != LEAVES
    ]


def dense(inverse: object, batch: int, dim: int) -> Tensor:
    """H of each sample as a matrix, [batch, dim, dim]; zeros where the solver built none."""
    if inverse is None:
        return torch.zeros(batch, dim, dim, dtype=torch.float64)
    columns = torch.eye(dim, dtype=torch.float64)
    return torch.stack([inverse.matvec(column.repeat(batch, 1)) for column in columns], dim=2)


@pytest.mark.parametrize(("solver", "problem", "name"), rows())
def test_w(solver: str, problem: str, name: str) -> None:
    case: Case = table_of_problems()[problem]
    gradient, expected, tolerance = GRADIENTS[name]
    forward = SOLVERS[solver](max_steps=100, rtol=0.0, atol=TOLERANCE, stall_steps=None)
    offset = torch.zeros_like(case.z0, requires_grad=True)
    layer = dk.DEQ(lambda z, b: case.f(z) + b, solver=forward, gradient=gradient)
    z = layer(case.z0, offset)
    cotangent = torch.randn_like(z)
    (w,) = torch.autograd.grad(z, offset, cotangent)

    # The layer solved exactly this, which leaves the same inverse again.
    solution = forward(lambda z: case.f(z) + 0.0, case.z0)
    inverses = dense(solution.inverse_jacobian, *case.z0.shape)
    for found, jacobian, right, inverse in zip(
        w, jacobians(case.f, solution.z), cotangent, inverses, strict=True
    ):
        wanted = expected(jacobian, right, inverse)
        assert (found - wanted).norm() <= tolerance * wanted.norm()


def test_the_table_is_whole() -> None:
    """Every gradient of the package is in it, every solver, and every problem."""
    gradients = {type(gradient) for gradient, _, _ in GRADIENTS.values()}
    public = {value for value in vars(dk).values() if isinstance(value, type)}
    assert gradients == {
        value for value in public if issubclass(value, dk.Gradient) and value is not dk.Gradient
    }
    assert {solver for solver, _, _ in rows()} == set(SOLVERS)
    assert {problem for _, problem, _ in rows()} == set(table_of_problems())
