"""U and V factors of other solvers and inverse estimates of this package."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.integrations.pairs import inverse_from_pairs, pairs_from_inverse
from python_tests.problems import DenseBroyden, Tanh


def textbook_pairs(
    f: Tanh, z0: Tensor, steps: int, *, damping: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Us, VTs and the dense H of each sample, by the formulas of the module's docstring."""
    batch, dim = z0.shape
    us, vts, dense = [], [], []
    for sample in range(batch):
        run = DenseBroyden.run(f.sample(sample), z0[sample], steps, damping=damping)
        inverse = -torch.eye(dim, dtype=z0.dtype)
        u_rows, v_rows = [], []
        for k in range(steps):
            s = run.iterates[k + 1] - run.iterates[k]
            y = run.residuals[k + 1] - run.residuals[k]
            v = inverse.T @ s
            u = (s - inverse @ y) / (v @ y)
            inverse = inverse + torch.outer(u, v)
            u_rows.append(u)
            v_rows.append(v)
        torch.testing.assert_close(inverse, run.inverse, rtol=1e-6, atol=1e-8)
        us.append(torch.stack(u_rows, dim=1))
        vts.append(torch.stack(v_rows))
        dense.append(inverse)
    return torch.stack(us), torch.stack(vts), torch.stack(dense)


def dense_of(inverse: dk.InverseJacobian, batch: int, dim: int, dtype: torch.dtype) -> Tensor:
    eye = torch.eye(dim, dtype=dtype).expand(batch, dim, dim).contiguous()
    forward = inverse.matvec(eye).mT
    torch.testing.assert_close(inverse.rmatvec(eye), forward, rtol=1e-4, atol=1e-5)
    return forward


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("room", [0, 3])
def test_unit_steps_become_a_product_form(dtype: torch.dtype, room: int) -> None:
    f = Tanh.random(3, 15, 0.9)
    us, vts, dense = textbook_pairs(f, torch.zeros(3, 15, dtype=torch.float64), 6)
    us = torch.nn.functional.pad(us, (0, room)).to(dtype)
    vts = torch.nn.functional.pad(vts, (0, 0, 0, room)).to(dtype)
    inverse = inverse_from_pairs(us, vts)
    assert isinstance(inverse, dk.ProductFormInverse)
    assert inverse.rank.tolist() == [6, 6, 6]
    assert inverse.directions.dtype == inverse.dtype == dtype
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    product = dense_of(inverse, 3, 15, dtype).double()
    torch.testing.assert_close(product, dense, rtol=tolerance, atol=tolerance)


def test_scaled_pairs_are_the_same_matrix() -> None:
    f = Tanh.random(2, 10, 0.9)
    us, vts, dense = textbook_pairs(f, torch.zeros(2, 10, dtype=torch.float64), 4)
    factor = torch.tensor([2.0, -3.0, 0.5, 7.0], dtype=torch.float64)
    inverse = inverse_from_pairs(us * factor, vts / factor[:, None])
    assert isinstance(inverse, dk.ProductFormInverse)
    product = dense_of(inverse, 2, 10, torch.float64)
    torch.testing.assert_close(product, dense, rtol=1e-9, atol=1e-9)


def test_each_sample_has_its_rank() -> None:
    f = Tanh.random(3, 10, 0.9)
    us, vts, _ = textbook_pairs(f, torch.zeros(3, 10, dtype=torch.float64), 5)
    us[1, :, 3:], vts[1, 3:] = 0.0, 0.0
    us[2], vts[2] = 0.0, 0.0
    expected = -torch.eye(10, dtype=torch.float64) + us @ vts
    inverse = inverse_from_pairs(us, vts)
    assert isinstance(inverse, dk.ProductFormInverse)
    assert inverse.rank.tolist() == [5, 3, 0]
    torch.testing.assert_close(
        dense_of(inverse, 3, 10, torch.float64), expected, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("change", ["damped", "overwritten", "lost", "any"])
def test_other_pairs_become_a_low_rank_inverse(change: str) -> None:
    f = Tanh.random(2, 10, 0.9)
    damping = 0.6 if change == "damped" else 1.0
    us, vts, _ = textbook_pairs(f, torch.zeros(2, 10, dtype=torch.float64), 5, damping=damping)
    if change == "overwritten":
        us, vts = us.roll(1, dims=2), vts.roll(1, dims=1)
    elif change == "lost":
        us[0, :, 2], vts[0, 2] = 0.0, 0.0
    elif change == "any":
        us, vts = torch.randn_like(us), torch.randn_like(vts)
    inverse = inverse_from_pairs(us, vts)
    assert isinstance(inverse, dk.LowRankInverse)
    expected = -torch.eye(10, dtype=torch.float64) + us @ vts
    torch.testing.assert_close(
        dense_of(inverse, 2, 10, torch.float64), expected, rtol=1e-9, atol=1e-9
    )
    assert isinstance(inverse_from_pairs(us, vts, tolerance=0.0), dk.LowRankInverse)


def test_states_of_several_dimensions_and_no_pairs() -> None:
    us, vts = torch.zeros(2, 3, 4, 0), torch.zeros(2, 0, 3, 4)
    inverse = inverse_from_pairs(us, vts)
    x = torch.randn(2, 12)
    assert torch.equal(inverse.matvec(x), -x)
    us, vts = torch.randn(2, 3, 4, 5), torch.randn(2, 5, 3, 4)
    inverse = inverse_from_pairs(us, vts)
    expected = torch.einsum("bcdm,bm->bcd", us, torch.einsum("bmcd,bcd->bm", vts, x.view(2, 3, 4)))
    torch.testing.assert_close(inverse.matvec(x), expected.flatten(1) - x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("damping", [1.0, 0.7])
def test_there_and_back(damping: float) -> None:
    f = Tanh.random(3, 12, 0.9)
    z0 = torch.zeros(3, 12, dtype=torch.float64)
    solver = dk.Broyden(max_steps=8, rtol=0.0, damping=damping, stall_steps=None)
    inverse = solver(f, z0).inverse_jacobian
    assert isinstance(inverse, dk.ProductFormInverse)
    us, vts = pairs_from_inverse(inverse, (3, 3, 4), capacity=9)
    assert us.shape == (3, 3, 4, 9)
    assert vts.shape == (3, 9, 3, 4)
    assert not us[..., 7:].any()
    back = inverse_from_pairs(us, vts)
    # The product form is found again where the steps were unit steps.
    assert isinstance(back, dk.ProductFormInverse if damping == 1.0 else dk.LowRankInverse)
    x = torch.randn(3, 12, dtype=torch.float64)
    torch.testing.assert_close(back.matvec(x), inverse.matvec(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back.rmatvec(x), inverse.rmatvec(x), rtol=1e-9, atol=1e-9)
    low = inverse_from_pairs(us, vts, tolerance=0.0)
    again = pairs_from_inverse(low, (3, 12), capacity=9)
    assert torch.equal(again[0], us.flatten(1, 2))
    assert torch.equal(again[1], vts.flatten(2))


def test_errors() -> None:
    good = torch.zeros(2, 3, 4), torch.zeros(2, 4, 3)
    with pytest.raises(ValueError, match=r"Us must be \[B, ..., m\]"):
        inverse_from_pairs(good[0], good[1].mT)
    with pytest.raises(TypeError, match="float32"):
        inverse_from_pairs(good[0].half(), good[1].half())
    with pytest.raises(ValueError, match="tolerance"):
        inverse_from_pairs(*good, tolerance=-1.0)
    inverse = dk.LowRankInverse.empty(2, 3, 4, gamma=0.5)
    with pytest.raises(ValueError, match="gamma must be 1"):
        pairs_from_inverse(inverse, (2, 4))
    with pytest.raises(ValueError, match="shape must be"):
        pairs_from_inverse(dk.LowRankInverse.empty(2, 3, 4), (2, 5))
    with pytest.raises(TypeError, match="got str"):
        pairs_from_inverse("H", (2, 4))  # type: ignore[arg-type]
