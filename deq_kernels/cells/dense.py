"""The dense cell z = φ(W z + u)."""

from __future__ import annotations

from torch import Tensor

from deq_kernels.cells.activations import activation_of
from deq_kernels.cells.estimators import estimator_of
from deq_kernels.cells.iteration import Stopping
from deq_kernels.cells.solve import Problem, check_state, start_of
from deq_kernels.cells.watched import CellOnSolve, watch_of
from deq_kernels.gradients import Gradient


def solve_dense(
    u: Tensor,
    weight: Tensor,
    *,
    activation: str,
    z0: Tensor | None = None,
    max_steps: int = 100,
    rtol: float = 1e-4,
    atol: float = 0.0,
    norm: str = "l2",
    damping: float = 1.0,
    accelerate: bool = True,
    stall_steps: int | None = 30,
    divergence_factor: float = 1e6,
    gradient: Gradient | None = None,
    on_solve: CellOnSolve = "warn",
) -> Tensor:
    """z with z = φ(W z + u) for each row u, by z ← z + λ (φ(W z + u) − z), all steps in one op.

    The same answer as `DEQ` with `FixedPoint` on this cell, up to rounding, each sample stopping by
    itself. There is one answer if ρ(|W|) < 1 and φ has slopes of at most 1, as all but gelu have
    (`deq_kernels.nn.perron_frobenius_bound`).

    With ℓ = ∂L/∂z and g = φ'(W z + u) ⊙ w the gradients are ∂L/∂u = g and ∂L/∂W = gᵀ z, where w
    solves w = Wᵀ (φ' ⊙ w) + ℓ (`Implicit`) or is estimated. `Implicit` and `Unrolled` have
    derivatives of every order; the others refuse to be differentiated again.

    Args:
        u: [B, n] float64, float32, float16 or bfloat16. Differentiable.
        weight: W, [n, n], dtype and device of u. Differentiable.
        activation: φ, one of identity, relu, tanh, sigmoid, elu, softplus and gelu.
        z0: start, [B, n]; None for zeros. No gradient flows to it.
        max_steps: largest number of steps.
        rtol: a sample has converged when ‖f(z) − z‖ ≤ atol + rtol ‖f(z)‖.
        atol: see rtol.
        norm: of a sample's n elements: "l2", or "max" for the largest magnitude; "rows", which
            graphs are judged by, is "l2" here.
        damping: λ, above 0 and at most 2.
        accelerate: let each step look back on the two before, by conjugate residuals (CROP:
            Ziolkowski et al. 2008; see `deq_kernels.ops.cells.iterate_`). Where ∂f/∂z is symmetric
            and f nearly linear, that takes about the square root of the number of steps; elsewhere
            mostly fewer, too. A step that does not lower the residual is taken back, and the
            iterate before evaluated again. False: the damped iteration alone.
        stall_steps: see `deq_kernels.Solver`.
        divergence_factor: see `deq_kernels.Solver`.
        gradient: `Implicit()` or None, the adjoint solved with the options above, atol being that
            of the adjoint scaled to entries of about 1; `Implicit(solver=FixedPoint(...))` with
            options of its own (the norm stays); `Neumann(...)`; `JacobianFree()`; `Unrolled(...)`,
            whose last state is what is returned under autograd. `Implicit` with the solver that it
            has by default is `Implicit()`.
        on_solve: what to do after a solve, forward or adjoint, that left samples unconverged:
            "warn" (an `UnconvergedWarning`), "raise" a `SolveError`, or "ignore" it; or a function,
            called with the `Solution` of the forward solve: its z is the best iterate, with status,
            steps, residual and trace per sample, in `norm`. `Implicit(on_solve=...)` is called with
            that of the adjoint.

    Returns:
        f of each sample's best iterate, [B, n]: the value that the slopes of the gradient belong
        to. With `Unrolled`, its last state; and without autograd the best iterate.

    Raises:
        TypeError: a tensor has the wrong dtype or device, an option is unknown, or `on_solve` is
            none of these.
        ValueError: a shape or an option is wrong, or the cell does not have the gradient.
        NotImplementedError: called inside a transform of torch.func, or with forward-mode tangents.

    Source: docs/algebra.md, section 3.
    """
    check_state("u", u, weight)
    watch = watch_of(on_solve, "solve_dense")
    stopping = Stopping(
        max_steps=max_steps,
        rtol=rtol,
        atol=atol,
        stall_steps=stall_steps,
        divergence_factor=divergence_factor,
        norm=norm,
        damping=damping,
        accelerate=accelerate,
    )
    problem = Problem(
        None,
        activation_of(activation),
        stopping,
        start_of(z0, "u", u),
        estimator_of(gradient, stopping, watch),
        watch,
    )
    return problem.solve(u, weight, None)
