"""The graph cell X = φ(W X A + B)."""

from __future__ import annotations

from torch import Tensor

from deq_kernels.cells.activations import activation_of
from deq_kernels.cells.adjacency import Adjacency
from deq_kernels.cells.estimators import estimator_of
from deq_kernels.cells.iteration import Stopping
from deq_kernels.cells.solve import Problem, check_like, check_state, start_of
from deq_kernels.cells.watched import CellOnSolve, watch_of
from deq_kernels.gradients import Gradient


def solve_graph(
    b: Tensor,
    weight: Tensor,
    adjacency: Adjacency,
    *,
    activation: str,
    z0: Tensor | None = None,
    max_steps: int = 300,
    rtol: float = 1e-4,
    atol: float = 0.0,
    norm: str = "rows",
    damping: float = 1.0,
    accelerate: bool = True,
    stall_steps: int | None = 30,
    divergence_factor: float = 1e6,
    gradient: Gradient | None = None,
    on_solve: CellOnSolve = "warn",
) -> Tensor:
    """The X of X = φ(W X A + B) (IGNN: Gu et al. 2020), all steps in one op.

    States are node-major here: z = Xᵀ and b = Bᵀ, [N, m], one row per node, so that
    z = φ(Aᵀ z Wᵀ + b). Each graph of the batch is one sample and stops by itself. There is one
    answer if ρ(|W|) ρ(|A|) < 1 and φ has slopes of at most 1 (the same paper, theorem 4.1 and
    `deq_kernels.nn.perron_frobenius_bound`), as all but gelu have.

    With ℓ = ∂L/∂z and g = φ' ⊙ w the gradients are ∂L/∂b = g, ∂L/∂W = gᵀ Aᵀ z and
    ∂L/∂A[i, j] = ⟨z_i, Wᵀ g_j⟩ at the entries of A, where w solves w = A (φ' ⊙ w) W + ℓ
    (`Implicit`) or is estimated. They hold for directed A. `Implicit` and `Unrolled` have
    derivatives of every order; the others refuse to be differentiated again.

    The compiled libraries take all steps in one call, on a GPU in one launch. Triton, which stands
    in for a CUDA library that was not built, has no graph cell: there, and under its backend, CUDA
    tensors take the PyTorch reference, which launches kernels of torch's in every step and waits
    for the device (`deq_kernels.backend_info()` says which backend serves CUDA tensors).

    Args:
        b: Bᵀ, [N, m] float64, float32, float16 or bfloat16. Differentiable.
        weight: W, [m, m], dtype and device of b. Differentiable.
        adjacency: A with the graphs' boundaries. Its values are differentiable.
        activation: φ, one of identity, relu, tanh, sigmoid, elu, softplus and gelu.
        z0: start, [N, m]; None for zeros. No gradient flows to it.
        max_steps: largest number of steps.
        rtol: a graph has converged when ‖f(z) − z‖ ≤ atol + rtol ‖f(z)‖ in `norm`.
        atol: see rtol.
        norm: "rows": each node's row has to meet the tolerance for itself, in its 2-norm, so that
            nodes with small states, far from where something is known, are as accurate as others.
            A row that changes by no more than the smallest normal number (2⁻⁵⁰⁰ in float64) meets
            it, and so does one of zeros that stays so. "l2" and "max": of all elements of a graph
            together, their 2-norm or largest magnitude. IGNN's published rule, max |ΔX| below
            3e-6, is norm="max", rtol=0, atol=3e-6: rows smaller than that are returned as they
            happen to be, and behind a head that divides by their norm so are gradients.
        damping: λ, above 0 and at most 2.
        accelerate: let each step look back on the two before, by conjugate residuals (CROP:
            Ziolkowski et al. 2008; see `deq_kernels.ops.cells.iterate_`). Where ∂f/∂z is symmetric
            and f nearly linear, that takes about the square root of the number of steps; elsewhere
            mostly fewer, too. A step that does not lower the residual is taken back, and the
            iterate before evaluated again. False: the damped iteration alone.
        stall_steps: see `deq_kernels.Solver`.
        divergence_factor: see `deq_kernels.Solver`.
        gradient: see `deq_kernels.cells.solve_dense`.
        on_solve: see `deq_kernels.cells.solve_dense`; the z of a `Solution` is [N, m], and status,
            steps, residual and trace are per graph, [G], in `norm`: by "rows", of the graph's row
            with the largest.

    Returns:
        f of each graph's best iterate, Xᵀ, [N, m]: the value that the slopes of the gradient belong
        to. With `Unrolled`, its last state; and without autograd the best iterate.

    Raises:
        TypeError: a tensor has the wrong dtype or device, an option is unknown, or `adjacency` is
            no `Adjacency`.
        ValueError: a shape or an option is wrong, the cell does not have the gradient, or a
            symmetric adjacency has values that require a gradient.
        NotImplementedError: called inside a transform of torch.func, or with forward-mode tangents.

    Source: docs/algebra.md, section 3.
    """
    check_state("b", b, weight)
    if not isinstance(adjacency, Adjacency):
        raise TypeError(
            f"adjacency must be an Adjacency; got {type(adjacency).__name__}. Build one with "
            "Adjacency.from_coo, Adjacency.from_csr or Adjacency.from_graphs."
        )
    if adjacency.nodes != len(b):
        raise ValueError(
            f"b must have one row per node of the adjacency, {adjacency.nodes}; got "
            f"{list(b.shape)}. States are node-major: transpose a B of [features, nodes]."
        )
    check_like("adjacency", adjacency.values, "b", b)
    adjacency.check_differentiable()
    watch = watch_of(on_solve, "solve_graph")
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
        adjacency.pattern,
        activation_of(activation),
        stopping,
        start_of(z0, "b", b),
        estimator_of(gradient, stopping, watch),
        watch,
    )
    return problem.solve(b, weight, adjacency.row_values())
