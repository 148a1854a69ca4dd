"""torchdeq solves and differentiates the same cell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deq_kernels as dk
from benchmarks.provider import ProviderAbsentError
from benchmarks.training.torchdeq_layer import TorchdeqLayer
from deq_zoo.choices import build_gradient, build_solver
from deq_zoo.equilibrium import EquilibriumConfig

pytest.importorskip("torchdeq")


class Pair(nn.Module):
    """f of a state of two tensors, contractive."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(6, 6, dtype=torch.float64))

    def forward(self, z: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.tanh(torch.cat(z, 1) @ self.weight + x)
        return out[:, :2], out[:, 2:]


@pytest.mark.parametrize(
    "options",
    [
        {"gradient": "implicit"},
        {"gradient": "jfb", "solver": "fixed_point"},
        {"gradient": "unrolled", "gradient_steps": 3, "damping": 0.7, "solver": "anderson"},
        {"gradient": "implicit", "rtol": 0.0, "atol": 1e-9},
    ],
)
def test_the_same_solution_and_gradient(options: dict[str, Any]) -> None:
    config = EquilibriumConfig(
        **{"rtol": 1e-9, "forward_steps": 80, "backward_steps": 80, **options}
    )
    layer = dk.DEQ(Pair(), solver=build_solver(config), gradient=build_gradient(config))
    peer = TorchdeqLayer(layer, config)
    x = torch.randn(4, 6, dtype=torch.float64)
    z0 = (x.new_zeros(4, 2), x.new_zeros(4, 4))
    found = []
    for module in (layer, peer):
        layer.cell.zero_grad()
        z = module(z0, x)
        (z[0].square().sum() + z[1].sum()).backward()
        found.append((*(part.detach().clone() for part in z), layer.cell.weight.grad.clone()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-8)
    assert peer.steps is not None
    assert 1 < peer.steps <= 80


@pytest.mark.parametrize(
    "options",
    [{"gradient": "shine"}, {"gradient": "neumann"}, {"solver": "adjoint_broyden"}],
)
def test_what_torchdeq_lacks(options: dict[str, Any]) -> None:
    layer = dk.DEQ(Pair())
    with pytest.raises(ProviderAbsentError, match="torchdeq has no"):
        TorchdeqLayer(layer, EquilibriumConfig(**options))
