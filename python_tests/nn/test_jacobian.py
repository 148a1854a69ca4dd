"""The Jacobian penalty against dense Jacobians."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.nn import jacobian_penalty
from python_tests.problems import Tanh, matrix_of_norm


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _dense_jacobians(problem: Tanh, z: Tensor) -> Tensor:
    """∂f/∂z of each sample, [batch, dim, dim]."""
    return torch.stack(
        [torch.func.jacrev(problem.sample(index))(z[index]) for index in range(len(z))]
    )


@pytest.mark.parametrize("probes", [1, 3])
def test_equals_the_formula_with_the_same_probes(probes: int) -> None:
    problem = Tanh.random(4, 7, 1.2)
    z = torch.randn(4, 7, dtype=torch.float64)
    value = jacobian_penalty(problem, z, probes=probes, reduction="none", generator=_generator())
    again = _generator()
    jacobians = _dense_jacobians(problem, z)
    expected = torch.zeros(4, dtype=torch.float64)
    for _ in range(probes):
        probe = torch.randn(4, 7, dtype=torch.float64, generator=again)
        expected += torch.einsum("bij,bi->bj", jacobians, probe).square().sum(1) / (7 * probes)
    torch.testing.assert_close(value, expected)
    mean = jacobian_penalty(problem, z, probes=probes, generator=_generator())
    torch.testing.assert_close(mean, expected.mean())


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_many_probes_tend_to_the_frobenius_norm(distribution: Any) -> None:
    problem = Tanh.random(3, 6, 1.5)
    z = torch.randn(3, 6, dtype=torch.float64)
    gram = _dense_jacobians(problem, z)
    gram = gram @ gram.mT
    exact = gram.diagonal(dim1=1, dim2=2).sum(1) / 6
    # Var ‖Jᵀε‖² is at most 2 ‖JJᵀ‖_F² for both; five standard deviations.
    bound = 5 * (2 * gram.square().sum((1, 2)) / 4000).sqrt() / 6
    value = jacobian_penalty(
        problem,
        z,
        probes=4000,
        distribution=distribution,
        reduction="none",
        generator=_generator(),
    )
    assert ((value - exact).abs() < bound).all()
    assert (bound < 0.2 * exact).all()


def test_one_sign_probe_is_exact_for_a_diagonal_jacobian() -> None:
    z = torch.randn(5, 9, dtype=torch.float64)
    value = jacobian_penalty(torch.sin, z, distribution="rademacher", reduction="none")
    torch.testing.assert_close(value, z.cos().square().mean(1))


def test_gradients_pass_gradcheck() -> None:
    weight = matrix_of_norm(4, 1.1).requires_grad_()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    z = torch.randn(2, 4, dtype=torch.float64)

    def penalty(weight: Tensor, x: Tensor) -> Tensor:
        def f(v: Tensor) -> Tensor:
            return torch.tanh(v @ weight.T + x)

        return jacobian_penalty(f, z, probes=2, reduction="none", generator=_generator())

    assert torch.autograd.gradcheck(penalty, (weight, x))
    assert torch.autograd.gradgradcheck(penalty, (weight, x))


def test_no_gradient_flows_to_z() -> None:
    weight = matrix_of_norm(4, 1.1).requires_grad_()
    z = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    jacobian_penalty(lambda v: torch.tanh(v @ weight.T), z * 1.0).backward()
    assert z.grad is None
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_descent_on_the_penalty_shrinks_the_jacobian_of_a_layer() -> None:
    cell = torch.nn.Linear(6, 6, dtype=torch.float64)
    layer = dk.DEQ(lambda z, x: torch.tanh(cell(z) + x))
    x, z0 = torch.randn(3, 6, dtype=torch.float64), torch.zeros(3, 6, dtype=torch.float64)
    optimizer = torch.optim.SGD(cell.parameters(), lr=2.0)
    before = torch.linalg.matrix_norm(cell.weight.detach())
    for _ in range(20):
        optimizer.zero_grad()
        z = layer(z0, x)
        jacobian_penalty(lambda v: layer.cell(v, x), z, generator=_generator()).backward()
        optimizer.step()
    assert torch.linalg.matrix_norm(cell.weight.detach()) < 0.8 * before


def test_a_generator_makes_it_repeatable_and_leaves_the_global_one_alone() -> None:
    problem, z = Tanh.random(3, 6, 1.0), torch.randn(3, 6, dtype=torch.float64)
    before = torch.get_rng_state()
    values = [jacobian_penalty(problem, z, generator=_generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    jacobian_penalty(problem, z)
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_tuple_is_one_state() -> None:
    problem, z = Tanh.random(3, 6, 1.0), torch.randn(3, 6, dtype=torch.float64)

    def pair(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = state
        out = problem(torch.cat((a.flatten(1), b), dim=1))
        return out[:, :4].reshape(3, 2, 2), out[:, 4:]

    state = (z[:, :4].reshape(3, 2, 2), z[:, 4:])
    assert torch.equal(
        jacobian_penalty(pair, state, generator=_generator()),
        jacobian_penalty(problem, z, generator=_generator()),
    )


def test_other_samples_do_not_matter() -> None:
    problem, z = Tanh.random(4, 33, 1.0), torch.randn(4, 33, dtype=torch.float64)
    options: dict[str, Any] = {"reduction": "none", "probes": 2}
    alone = jacobian_penalty(problem, z, generator=_generator(), **options)
    z[1], z[3] = torch.nan, 1e30
    others = jacobian_penalty(problem, z, generator=_generator(), **options)
    assert torch.equal(alone[[0, 2]], others[[0, 2]])
    assert others[1].isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_squares_of_half_precision_do_not_overflow(dtype: torch.dtype) -> None:
    z = torch.ones(2, 5, dtype=dtype)
    value = jacobian_penalty(lambda v: 400 * v, z, distribution="rademacher")
    assert value.dtype == torch.float32
    assert value.item() == 160_000


def test_under_autocast() -> None:
    weight = matrix_of_norm(8, 1.0, torch.float32)
    z = torch.randn(2, 8)
    plain = jacobian_penalty(lambda v: v @ weight.T, z, generator=_generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = jacobian_penalty(lambda v: v @ weight.T, z, generator=_generator())
    torch.testing.assert_close(value, plain, rtol=5e-2, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_autograd_the_value_is_the_same_and_carries_no_graph(mode: Any) -> None:
    weight = matrix_of_norm(5, 1.0).requires_grad_()
    with mode():
        z = torch.ones(2, 5, dtype=torch.float64)
        value = jacobian_penalty(lambda v: torch.tanh(v @ weight.T), z, generator=_generator())
    assert not value.requires_grad
    expected = jacobian_penalty(
        lambda v: torch.tanh(v @ weight.T), torch.ones_like(z), generator=_generator()
    )
    assert expected.requires_grad
    assert value.item() == expected.item()


def test_a_map_that_ignores_z_has_no_penalty() -> None:
    weight = torch.ones(3, requires_grad=True)
    z = torch.randn(2, 3)
    assert jacobian_penalty(lambda v: torch.ones_like(v), z) == 0
    assert jacobian_penalty(lambda v: weight.expand(2, 3), z) == 0


@pytest.mark.parametrize("shape", [(0, 4), (3, 1), (2, 0)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    z = torch.randn(shape, dtype=torch.float64)
    assert jacobian_penalty(lambda v: 2 * v, z, reduction="none").shape == shape[:1]
    assert jacobian_penalty(lambda v: 2 * v, z).isfinite()


def test_strided_states() -> None:
    problem, z = Tanh.random(3, 6, 1.0), torch.randn(6, 3, dtype=torch.float64).T
    assert not z.is_contiguous()
    assert torch.equal(
        jacobian_penalty(problem, z, generator=_generator()),
        jacobian_penalty(problem, z.contiguous(), generator=_generator()),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": 0}, "probes must be a whole number, at least 1; got 0"),
        ({"distribution": "uniform"}, "distribution must be one of gaussian, rademacher"),
        ({"reduction": "sum"}, "reduction must be one of mean, none; got 'sum'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jacobian_penalty(torch.tanh, torch.zeros(1, 2), **options)


def test_unknown_options_and_wrong_maps_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        jacobian_penalty(torch.tanh, torch.zeros(1, 2), vecs=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="f must return the shape it takes"):
        jacobian_penalty(lambda v: v[:, :1], torch.zeros(1, 2))
    with pytest.raises(TypeError, match="f must return the dtype"):
        jacobian_penalty(lambda v: v.double(), torch.zeros(1, 2))


def test_attention_can_be_penalised() -> None:
    """PyTorch's fused attention has no second derivatives, its unfused one has."""
    weight = torch.randn(4, 4, requires_grad=True)

    def f(z: Tensor) -> Tensor:
        q = z @ weight
        return torch.nn.functional.scaled_dot_product_attention(q, z, z)

    jacobian_penalty(f, torch.randn(2, 1, 3, 4)).backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0
