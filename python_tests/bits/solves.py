"""What is recorded of solvers, roots, gradients and the layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import deq_kernels as dk
from python_tests.bits.values import (
    DTYPES,
    descent,
    digest,
    digests,
    of_solution,
    pattern,
    step,
    wave,
)

Case = tuple[str, dict[str, str]]

SOLVERS: dict[str, dk.Solver] = {
    "broyden": dk.Broyden(max_steps=25),
    "broyden_restart": dk.Broyden(max_steps=25, history_length=4, rtol=1e-9),
    "broyden_drop_oldest": dk.Broyden(
        max_steps=25, history_length=4, when_full="drop_oldest", rtol=1e-9
    ),
    "broyden_line_search": dk.Broyden(max_steps=25, line_search="derivative_free"),
    "broyden_bfloat16_history": dk.Broyden(max_steps=25, history_dtype=torch.bfloat16),
    "broyden_gamma": dk.Broyden(max_steps=25, gamma="auto", damping=0.9),
    "anderson": dk.Anderson(max_steps=25),
    "anderson_damped": dk.Anderson(max_steps=25, history_length=3, damping=0.7),
    "anderson_bfloat16_history": dk.Anderson(max_steps=25, history_dtype=torch.bfloat16),
    "fixed_point": dk.FixedPoint(max_steps=25),
    "fixed_point_damped": dk.FixedPoint(max_steps=25, damping=0.8, atol=1e-4),
    "gmres": dk.GMRES(max_steps=25),
    "gmres_restarted": dk.GMRES(max_steps=25, restart=5, rtol=1e-7),
    "adjoint_broyden": dk.AdjointBroyden(max_steps=15),
    "adjoint_broyden_outer": dk.AdjointBroyden(
        max_steps=15, opa_every=3, outer_gradient=lambda z: 0.5 * z
    ),
    "lbfgs": dk.LBFGS(max_steps=25),
    "lbfgs_armijo": dk.LBFGS(max_steps=25, line_search="armijo", history_length=3),
    "lbfgs_outer": dk.LBFGS(
        max_steps=25, line_search=None, opa_every=2, outer_gradient=lambda z: 0.5 * z
    ),
}
"""By case. Those with a history of bfloat16 are recorded for a state of float32."""

WIDE = ("broyden", "broyden_drop_oldest", "anderson", "fixed_point_damped", "gmres")
"""Solvers that are also recorded on states of several tiles."""

GRADIENTS: dict[str, dk.Gradient] = {
    "implicit": dk.Implicit(),
    "implicit_anderson": dk.Implicit(solver=dk.Anderson(max_steps=30, rtol=1e-6)),
    "implicit_gmres": dk.Implicit(solver=dk.GMRES(max_steps=30, rtol=1e-6)),
    "jacobian_free": dk.JacobianFree(),
    "jacobian_free_refined": dk.JacobianFree(refine=3),
    "shine": dk.Shine(),
    "shine_fallback": dk.Shine(fallback=1.05),
    "shine_refined": dk.Shine(fallback=1.3, refine=3),
    "limited": dk.Limited(steps=4),
    "neumann": dk.Neumann(steps=4, damping=0.5),
    "unrolled": dk.Unrolled(steps=4, damping=0.5),
    "adaptive": dk.Adaptive(tolerance=1e-4),
}

ROOTS = ("broyden1", "anderson", "linearmixing", "adjoint_broyden", "lbfgs", "gmres")


def solver_cases() -> Iterator[Case]:
    """Every solver in every dtype; samples end at different steps, some without an answer."""
    for name, solver in SOLVERS.items():
        for dtype_name, dtype in DTYPES.items():
            if getattr(solver, "history_dtype", None) is not None and dtype != torch.float32:
                continue
            yield f"solver/{name}/{dtype_name}", of_solution(_solve(solver, 4, 37, dtype))
    for name in WIDE:
        for dtype_name in ("float32", "bfloat16"):
            solution = _solve(SOLVERS[name], 2, 20011, DTYPES[dtype_name])
            yield f"solver/{name}/wide/{dtype_name}", of_solution(solution)


def _solve(solver: dk.Solver, batch: int, dim: int, dtype: torch.dtype) -> dk.Solution:
    x = pattern(batch, dim, dtype=dtype)
    z0 = pattern(batch, dim, dtype=dtype, seed=1, scale=0.25)
    if isinstance(solver, dk.LBFGS):
        f = descent(x)
    else:
        f = wave(x, bend=0.0 if isinstance(solver, dk.GMRES) else 0.05)
    return solver(f, z0)


def root_cases() -> Iterator[Case]:
    """`root` by every method."""
    x = pattern(3, 19, dtype=torch.float64)
    for method in ROOTS:
        map_ = descent(x) if method == "lbfgs" else wave(x, bend=0.0)
        found = dk.root(
            lambda z, map_=map_: map_(z) - z,
            torch.zeros_like(x),
            method=method,
            batched=True,
            options={"maxiter": 40},
        )
        kept = {"x": found.x, "fun": found.fun, "status": torch.as_tensor(found.status)}
        yield f"root/{method}", digests(kept) | {"nfev": str(int(found.nfev))}


class Cell(nn.Module):
    """f of `wave`, its coefficients a parameter."""

    def __init__(self, dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.a = nn.Parameter(pattern(dim, dtype=dtype, seed=3, scale=0.75))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """f(z), [B, dim]."""
        return step(z, self.a, x)


def gradient_cases() -> Iterator[Case]:
    """A layer forward and backward, by every gradient in every dtype."""
    solver = dk.Broyden(max_steps=20, rtol=1e-5)
    for name, gradient in GRADIENTS.items():
        for dtype_name, dtype in DTYPES.items():
            yield f"gradient/{name}/{dtype_name}", _layer(solver, gradient, dtype)
    for name in ("anderson", "fixed_point"):
        layer = _layer(SOLVERS[name], dk.Implicit(), torch.float32)
        yield f"layer/{name}", layer


def _layer(solver: dk.Solver, gradient: dk.Gradient, dtype: torch.dtype) -> dict[str, str]:
    layer = dk.DEQ(Cell(29, dtype), solver=solver, gradient=gradient)
    x = pattern(3, 29, dtype=dtype).requires_grad_()
    z = layer(torch.zeros_like(x), x)
    z.backward(pattern(3, 29, dtype=dtype, seed=6))
    assert layer.last_solution is not None
    cell = layer.cell
    assert isinstance(cell, Cell)
    return {
        "output": digest(z),
        "of_x": digest(x.grad),
        "of_a": digest(cell.a.grad),
        **of_solution(layer.last_solution),
    }
