"""SHINE with a forward solver that knows the outer problem."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.gradients import AdjointGradient
from python_tests.gradients.tanh_layer import TanhCell, assert_gradients, parameter_gradients

DIM, SAMPLES = 40, 6


@dataclass(frozen=True, kw_only=True)
class ShineWitness(AdjointGradient):
    """SHINE that keeps the w it gives."""

    needs_vjp = False
    needs_inverse = True
    seen: list[Tensor] = field(default_factory=list)

    def adjoint(self, cotangent: Tensor, vjp, inverse: dk.InverseJacobian | None) -> Tensor:
        w = dk.Shine().adjoint(cotangent, vjp, inverse)
        self.seen.append(w)
        return w


def errors(cell: TanhCell, x: Tensor, target: Tensor, opa_every: int | None) -> Tensor:
    """‖w − w*‖ / ‖w*‖ of each sample for the loss ½ ‖z − target‖²; checks the gradients too."""
    witness = ShineWitness()
    outer = None if opa_every is None else lambda z: z - target
    solver = dk.AdjointBroyden(
        max_steps=40, rtol=1e-8, opa_every=opa_every, outer_gradient=outer, stall_steps=None
    )
    layer = dk.DEQ(cell, solver=solver, gradient=witness)
    z = layer(torch.zeros(SAMPLES, DIM, dtype=torch.float64), x)
    assert layer.last_solution.converged.all()
    cell.zero_grad()
    x.grad = None
    (0.5 * (z - target).square().sum()).backward()
    (w,) = witness.seen
    assert_gradients(cell, x, parameter_gradients(cell, z, x, w), 1e-9)
    exact = cell.adjoint(z.detach(), x.detach(), (z - target).detach())
    return (w - exact).norm(dim=1) / exact.norm(dim=1)


def test_the_prescribed_direction_is_inverted_better() -> None:
    """In every sample, and the better the more often it is prescribed."""
    cell = TanhCell(DIM, 1.2)
    x = torch.randn(SAMPLES, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(SAMPLES, DIM, dtype=torch.float64)
    plain = errors(cell, x, target, None)
    every_fifth = errors(cell, x, target, 5)
    every = errors(cell, x, target, 1)
    assert (every_fifth < 0.5 * plain).all()
    assert (every < 1e-3).all()
    assert (every < every_fifth).all()


def test_adaptive_has_less_to_do_then() -> None:
    cell = TanhCell(DIM, 1.2)
    x = torch.randn(SAMPLES, 3, dtype=torch.float64)
    target = torch.randn(SAMPLES, DIM, dtype=torch.float64)
    steps = []
    for options in ({}, {"opa_every": 2, "outer_gradient": lambda z: z - target}):
        seen: list[dk.Solution] = []
        solver = dk.AdjointBroyden(max_steps=40, rtol=1e-8, stall_steps=None, **options)
        gradient = dk.Adaptive(tolerance=1e-3, on_solve=seen.append)
        layer = dk.DEQ(cell, solver=solver, gradient=gradient)
        z = layer(torch.zeros(SAMPLES, DIM, dtype=torch.float64), x)
        (0.5 * (z - target).square().sum()).backward()
        assert seen[0].converged.all()
        steps.append(seen[0].steps)
    assert (2 * steps[1] <= steps[0]).all()
