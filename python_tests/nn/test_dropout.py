"""Variational dropout keeps one mask until it is told to draw another."""

from __future__ import annotations

import pytest
import torch

from deq_kernels.nn import VariationalDropout


def _resample(dropout: VariationalDropout, batch: int, channels: int) -> None:
    dropout.resample(batch, channels, dtype=torch.float64, device=torch.device("cpu"))


def test_the_mask_stays_until_it_is_resampled() -> None:
    dropout = VariationalDropout(0.5)
    ones = torch.ones(16, 32, 2, 3, dtype=torch.float64)
    _resample(dropout, 16, 32)
    first = dropout(ones)
    assert torch.equal(dropout(ones), first)
    _resample(dropout, 16, 32)
    assert not torch.equal(dropout(ones), first)


def test_whole_channels_are_dropped_and_the_rest_is_scaled() -> None:
    dropout = VariationalDropout(0.25)
    _resample(dropout, 64, 64)
    out = dropout(torch.ones(64, 64, 2, 2, dtype=torch.float64))
    assert torch.equal(out, out[:, :, :1, :1].expand_as(out))
    assert torch.allclose(out[out > 0], torch.tensor(1 / 0.75, dtype=torch.float64))
    # 4096 draws: the share of zeros deviates from 0.25 by more than 0.04 with probability 1e-9.
    assert abs((out[:, :, 0, 0] == 0).double().mean().item() - 0.25) < 0.04


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True)])
def test_identity_draws_no_random_number(p: float, training: bool) -> None:
    dropout = VariationalDropout(p).train(training)
    before = torch.get_rng_state()
    _resample(dropout, 2, 8)
    x = torch.ones(2, 8, 2, 2)
    assert dropout(x) is x
    assert torch.equal(torch.get_rng_state(), before)


def test_a_missing_or_stale_mask_is_an_error() -> None:
    dropout = VariationalDropout(0.5)
    x = torch.ones(4, 8, 2, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"present mask: none; call resample"):
        dropout(x)
    _resample(dropout, 3, 8)
    with pytest.raises(RuntimeError, match=r"present mask: \(3, 8, 1, 1\)"):
        dropout(x)


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_probability_out_of_range(p: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        VariationalDropout(p)


@pytest.mark.parametrize(
    ("shared", "sizes", "mask"),
    [
        ((1,), (3, 5), (3, 1, 5)),
        ((0,), (5,), (1, 5)),
        ((), (2, 4, 3, 3), (2, 4, 3, 3)),
        ((3, 2), (2, 4), (2, 4, 1, 1)),
    ],
)
def test_shared_dimensions(
    shared: tuple[int, ...], sizes: tuple[int, ...], mask: tuple[int, ...]
) -> None:
    dropout = VariationalDropout(0.5, shared=shared)
    dropout.resample(*sizes, dtype=torch.float64, device=torch.device("cpu"))
    assert dropout.mask is not None
    assert dropout.mask.shape == mask
    x = torch.randn(*(7 if dim in shared else size for dim, size in enumerate(mask)))
    torch.testing.assert_close(dropout(x), x * dropout.mask)


@pytest.mark.parametrize("shared", [(-1,), (1, 1)])
def test_refused_shared_dimensions(shared: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="different dimensions, counted from 0"):
        VariationalDropout(0.5, shared=shared)


def test_a_shared_dimension_beyond_the_sizes() -> None:
    with pytest.raises(ValueError, match=r"shared = \(2, 3\) needs a tensor of more dimensions"):
        _resample_one_size(VariationalDropout(0.5))


def _resample_one_size(dropout: VariationalDropout) -> None:
    dropout.resample(4, dtype=torch.float64, device=torch.device("cpu"))
