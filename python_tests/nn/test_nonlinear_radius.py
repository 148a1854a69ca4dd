"""The power method on f itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deq_kernels.models.mdeq import MDEQConfig
from deq_kernels.models.mdeq.cell import MDEQCell
from deq_kernels.nn import nonlinear_spectral_radius


def test_a_linear_map_has_its_leading_eigenvalue() -> None:
    matrices = torch.randn(3, 8, 8, dtype=torch.float64)
    matrices = matrices @ matrices.mT  # so that it is real
    exact = torch.linalg.eigvalsh(matrices).amax(1)
    found = nonlinear_spectral_radius(
        lambda v: torch.einsum("bij,bj->bi", matrices, v),
        torch.randn(3, 8, dtype=torch.float64),
        max_steps=500,
        rtol=1e-6,
    )
    assert found.converged.all()
    torch.testing.assert_close(found.radius, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_positive_homogeneous_map(sign: float) -> None:
    """relu(Wv) with W > 0 has Perron's eigenvalue; no linearisation at zero would see it."""
    weight = torch.rand(6, 6, dtype=torch.float64) + 0.1
    exact = torch.linalg.eigvals(weight).abs().max()
    found = nonlinear_spectral_radius(
        lambda v: sign * F.relu(sign * v @ weight.T), torch.rand(2, 6, dtype=torch.float64) * sign
    )
    assert found.converged.all()
    torch.testing.assert_close(found.radius, exact.expand(2), rtol=1e-3, atol=0)


def test_the_trajectory_is_the_definition() -> None:
    """v ← f(v)/‖f(v)‖, ρ = ‖f(v)‖, for a map that is far from homogeneous."""
    weight = torch.randn(5, 5, dtype=torch.float64)

    def f(v: Tensor) -> Tensor:
        return torch.cos(v @ weight.T) + v.square()

    v = torch.randn(3, 5, dtype=torch.float64)
    found = nonlinear_spectral_radius(f, 7.0 * v, max_steps=4, rtol=0.0)
    for _ in range(4):
        v = v / v.norm(dim=1, keepdim=True)
        v = f(v)
    torch.testing.assert_close(found.radius, v.norm(dim=1))
    torch.testing.assert_close(found.vector, v / v.norm(dim=1, keepdim=True))
    assert found.steps.tolist() == [4, 4, 4]
    assert not found.converged.any()


def test_a_constant_map_has_the_length_of_its_value() -> None:
    value = torch.tensor([[3.0, 4.0]])
    found = nonlinear_spectral_radius(lambda v: value.expand_as(v), torch.randn(2, 2))
    assert found.radius.tolist() == [5.0, 5.0]
    assert found.steps.tolist() == [2, 2]
    assert found.converged.all()


def test_a_map_that_ends_in_a_normalisation_has_the_root_of_the_dimension() -> None:
    """What SHINE's Table E.1 shows: 193.7 to 234.2 where √d = 247.9."""
    config = MDEQConfig.preset("digits")
    cell = MDEQCell(config).eval()
    u = torch.randn(2, *config.state_shapes[0])
    start = tuple(torch.randn(2, *shape) for shape in config.state_shapes)
    found = nonlinear_spectral_radius(lambda z: cell(z, u), start, max_steps=10)
    root = torch.full((2,), config.state_dim**0.5, dtype=torch.float64)
    torch.testing.assert_close(found.radius, root, rtol=1e-2, atol=0)
    large = MDEQConfig.preset("cifar10_large")
    assert 0.75 * large.state_dim**0.5 < 193.7 < 234.2 < large.state_dim**0.5


def test_other_samples_do_not_matter_and_nothing_is_recorded() -> None:
    weight = torch.randn(7, 7, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(4, 7, dtype=torch.float64)
    start = torch.randn(4, 7, dtype=torch.float64)
    alone = nonlinear_spectral_radius(lambda v: torch.tanh(v @ weight.T + shift), start)
    other = shift.clone()
    other[1], other[2] = torch.nan, -other[2]
    found = nonlinear_spectral_radius(lambda v: torch.tanh(v @ weight.T + other), start)
    assert not found.radius.requires_grad
    assert torch.equal(alone.radius[[0, 3]], found.radius[[0, 3]])
    assert found.radius[1].isnan()
    assert not torch.equal(alone.radius[2], found.radius[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    found = nonlinear_spectral_radius(lambda v: 3.0 * v, torch.randn(2, 9).to(dtype), rtol=0.05)
    torch.testing.assert_close(found.radius, torch.full((2,), 3.0).double(), rtol=2e-2, atol=0)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_start_without_direction_is_refused(value: float) -> None:
    start = torch.randn(3, 4)
    start[1] = value
    with pytest.raises(ValueError, match="start must be finite and not zero in every sample"):
        nonlinear_spectral_radius(torch.tanh, start)
