"""The spectral radius on known spectra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.nn import spectral_radius
from python_tests.problems import Affine, Tanh


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _with_blocks(*blocks: Tensor) -> Tensor:
    """A matrix similar to the block diagonal one, by a well-conditioned change of basis."""
    diagonal = torch.block_diag(*blocks)
    basis = torch.randn(diagonal.shape, dtype=torch.float64).mul_(0.2)
    basis += 2 * torch.eye(len(diagonal), dtype=torch.float64)
    return basis @ diagonal @ torch.linalg.inv(basis)


def _scalar(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def _pair(modulus: float, angle: float) -> Tensor:
    rotation = torch.tensor([[0.0, -angle], [angle, 0.0]], dtype=torch.float64)
    return modulus * torch.linalg.matrix_exp(rotation)


def _linear(matrices: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.einsum("bij,bj->bi", matrices.to(z.dtype), z)


SMALLER = [_scalar(value) for value in (0.6, -0.5, 0.4, 0.1, 0.0)]
SPECTRA = {
    "positive": (0.9, 0.9 + 0j, [_scalar(0.9)]),
    "negative": (1.7, -1.7 + 0j, [_scalar(-1.7)]),
    "complex": (1.2, 1.2 * complex(0.0707372, 0.9974950), [_pair(1.2, 1.5)]),
    "both signs": (0.8, None, [_scalar(0.8), _scalar(-0.8)]),
}


@pytest.mark.parametrize("case", SPECTRA)
def test_known_spectra(case: str) -> None:
    modulus, eigenvalue, leading = SPECTRA[case]
    matrix = _with_blocks(*leading, *SMALLER)
    found = spectral_radius(
        _linear(matrix[None]), torch.zeros(1, len(matrix), dtype=torch.float64), rtol=1e-8
    )
    assert found.converged.all()
    assert found.radius.item() == pytest.approx(modulus, rel=1e-6)
    assert found.eigenvalue.abs().item() == pytest.approx(found.radius.item(), rel=1e-12)
    if eigenvalue is not None:
        assert abs(found.eigenvalue.item() - eigenvalue) < 1e-5
    assert (found.residual <= 1e-8).all()
    assert (found.steps < 100).all()


def test_the_vector_is_an_eigenvector_of_the_transpose() -> None:
    matrix = _with_blocks(_scalar(0.9), *SMALLER)
    z = torch.zeros(1, len(matrix), dtype=torch.float64)
    v = spectral_radius(_linear(matrix[None]), z, rtol=1e-10).vector
    assert isinstance(v, Tensor)
    torch.testing.assert_close(v @ matrix, 0.9 * v, rtol=1e-7, atol=1e-7)


def test_a_batch_of_random_matrices_against_dense_eigenvalues() -> None:
    matrices = torch.randn(12, 30, 30, dtype=torch.float64) / 30**0.5
    exact = torch.linalg.eigvals(matrices).abs().amax(1)
    z = torch.zeros(12, 30, dtype=torch.float64)
    found = spectral_radius(_linear(matrices), z, max_steps=600)
    assert found.converged.sum() >= 10
    assert len(found.steps.unique()) > 5
    ratio = found.radius / exact
    assert ((ratio - 1).abs()[found.converged] < 5e-3).all()
    assert ((ratio - 1).abs() < 0.05).all()


def test_at_the_solution_of_a_nonlinear_map() -> None:
    problem = Tanh.random(4, 15, 1.3)
    solution = dk.Broyden(max_steps=80, rtol=1e-12)(problem, torch.zeros(4, 15).double())
    jacobians = torch.stack(
        [torch.func.jacrev(problem.sample(index))(solution.z[index]) for index in range(4)]
    )
    found = spectral_radius(problem, solution.z, max_steps=400, rtol=1e-5)
    exact = torch.linalg.eigvals(jacobians).abs().amax(1)
    assert found.converged.any()
    assert ((found.radius / exact - 1).abs()[found.converged] < 1e-3).all()


def test_radius_and_norm_differ() -> None:
    """[[0.5, 100], [0, 0.4]] has norm 100 and radius 0.5."""
    matrix = torch.tensor([[[0.5, 100.0], [0.0, 0.4]]], dtype=torch.float64)
    found = spectral_radius(_linear(matrix), torch.zeros(1, 2, dtype=torch.float64))
    assert found.radius.item() == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_small_dimensions(dim: int) -> None:
    matrices = torch.randn(6, dim, dim, dtype=torch.float64)
    found = spectral_radius(
        _linear(matrices), torch.zeros(6, dim, dtype=torch.float64), max_steps=300, rtol=1e-9
    )
    exact = torch.linalg.eigvals(matrices).abs().amax(1)
    torch.testing.assert_close(
        found.radius[found.converged], exact[found.converged], rtol=1e-6, atol=0
    )
    assert found.converged.sum() >= 5
    assert dim > 2 or (found.steps <= 3).all()


def test_nothing_to_find() -> None:
    """The zero map, a constant, and a nilpotent one."""
    z = torch.zeros(2, 3, dtype=torch.float64)
    for f in (torch.zeros_like, lambda v: v.detach() + 1.0):
        found = spectral_radius(f, z)
        assert found.radius.tolist() == [0.0, 0.0]
        assert found.converged.all()
    shift = torch.diag(torch.ones(2, dtype=torch.float64), 1).expand(2, 3, 3)
    found = spectral_radius(_linear(shift), z)
    assert found.radius.tolist() == [0.0, 0.0]
    assert found.converged.all()
    assert found.steps.tolist() == [3, 3]


def test_a_sample_that_is_not_finite_says_so_and_harms_nobody() -> None:
    problem, z = Tanh.random(4, 12, 1.0), torch.randn(4, 12, dtype=torch.float64)
    good = spectral_radius(problem, z, generator=_generator())
    z[1], z[2] = torch.nan, 3.0
    bad = spectral_radius(problem, z, generator=_generator())
    assert bad.radius[1].isnan()
    assert bad.eigenvalue[1].isnan()
    assert not bad.converged[1]
    assert bad.steps[1] == 1
    for before, after in (
        (good.radius, bad.radius),
        (good.steps, bad.steps),
        (good.residual, bad.residual),
        (good.vector, bad.vector),
    ):
        assert torch.equal(before[[0, 3]], after[[0, 3]])
    assert not torch.equal(good.vector[2], bad.vector[2])


def test_too_few_steps_are_reported() -> None:
    matrix = _with_blocks(_scalar(1.0), _scalar(0.99), _scalar(-0.98), *SMALLER)[None]
    z = torch.zeros(1, matrix.shape[1], dtype=torch.float64)
    found = spectral_radius(_linear(matrix), z, max_steps=4, rtol=1e-6)
    assert not found.converged
    assert found.steps == 4
    assert found.residual > 1e-6
    assert found.eigenvalue.isnan()
    assert 0.5 < found.radius < 2.0


def test_many_eigenvalues_of_one_modulus() -> None:
    """No pair settles; the mean growth is right all the same."""
    blocks = [_pair(1.1, angle) for angle in (0.3, 1.0, 1.7, 2.6)]
    matrix = _with_blocks(*blocks, *SMALLER)[None]
    found = spectral_radius(_linear(matrix), torch.zeros(1, 13, dtype=torch.float64))
    assert not found.converged
    assert found.radius.item() == pytest.approx(1.1, rel=0.03)


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_lower_precision(dtype: torch.dtype, rtol: float, scale: float) -> None:
    matrix = scale * _with_blocks(_scalar(0.9), *SMALLER)[None]
    found = spectral_radius(_linear(matrix), torch.zeros(1, 6, dtype=dtype), rtol=rtol)
    assert found.converged.all()
    assert found.radius.item() == pytest.approx(0.9 * scale, rel=5 * rtol)
    assert found.vector.dtype == dtype


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale(scale: float) -> None:
    matrix = _with_blocks(_scalar(0.9), *SMALLER)[None]
    found = spectral_radius(lambda z: _linear(matrix)(z) * scale, torch.zeros(1, 6), rtol=1e-5)
    assert found.converged.all()
    assert found.radius.item() == pytest.approx(0.9 * scale, rel=1e-4)


def test_wide_half_precision_states_keep_their_entries_in_range() -> None:
    """Unit vectors of this length would have entries below the smallest normal float16."""
    f = torch.ones(1, dtype=torch.float16)
    found = spectral_radius(lambda z: 0.5 * f * z, torch.zeros(1, 300_000, dtype=torch.float16))
    assert found.radius.item() == 0.5


def test_a_tuple_is_one_state() -> None:
    problem, z = Tanh.random(3, 6, 1.0), torch.randn(3, 6, dtype=torch.float64)

    def pair(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        out = problem(torch.cat((state[0].flatten(1), state[1]), dim=1))
        return out[:, :4].reshape(3, 2, 2), out[:, 4:]

    one = spectral_radius(problem, z, generator=_generator())
    two = spectral_radius(pair, (z[:, :4].reshape(3, 2, 2), z[:, 4:]), generator=_generator())
    assert torch.equal(one.radius, two.radius)
    assert isinstance(two.vector, tuple)
    assert [part.shape for part in two.vector] == [(3, 2, 2), (3, 2)]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_every_grad_mode_gives_the_same_and_no_graph(mode: Any) -> None:
    problem = Affine.random(2, 8, 0.9)
    problem.weight.requires_grad_()
    with mode():
        z = torch.ones(2, 8, dtype=torch.float64)
        found = spectral_radius(problem, z, generator=_generator())
    expected = spectral_radius(problem, torch.ones_like(z), generator=_generator())
    assert torch.equal(found.radius, expected.radius)
    assert not found.radius.requires_grad
    assert problem.weight.grad is None


def test_a_generator_leaves_the_global_one_alone() -> None:
    problem, z = Tanh.random(3, 6, 1.0), torch.randn(3, 6, dtype=torch.float64)
    before = torch.get_rng_state()
    spectral_radius(problem, z, generator=_generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_an_empty_batch() -> None:
    found = spectral_radius(torch.tanh, torch.zeros(0, 4))
    assert found.radius.shape == found.steps.shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps must be a whole number, at least 1; got 0"),
        ({"rtol": -1e-3}, "rtol must be at least 0 and below 1"),
        ({"rtol": 1.0}, "rtol must be at least 0 and below 1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectral_radius(torch.tanh, torch.zeros(1, 2), **options)


def test_a_map_that_changes_its_state_in_place_is_refused() -> None:
    with pytest.raises(RuntimeError):
        spectral_radius(lambda v: v.mul_(2), torch.zeros(1, 2))
