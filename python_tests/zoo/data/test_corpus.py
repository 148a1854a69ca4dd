"""Streams of a text, read in segments."""

from __future__ import annotations

import pytest
import torch

from deq_zoo.data import Streams


def test_rows_go_on_from_batch_to_batch() -> None:
    streams = Streams(torch.arange(24, dtype=torch.int32), 3, 3)
    batches = list(streams)
    assert [tuple(x.shape) for x, _ in batches] == [(3, 3), (3, 3), (3, 1)]
    assert len(streams) == 3
    tokens = torch.cat([x for x, _ in batches], 1)
    assert tokens.tolist() == [list(range(s, s + 7)) for s in (0, 7, 14)]
    assert all(torch.equal(y, x + 1) and x.dtype == torch.int64 for x, y in batches)


@pytest.mark.parametrize("length", [25, 26, 27, 28])
def test_fewer_tokens_than_streams_are_left_out(length: int) -> None:
    streams = Streams(torch.arange(length), 3, 4)
    seen = sum(x.numel() for x, _ in streams)
    assert 0 <= length - 1 - seen < 3


def test_a_text_shorter_than_its_streams() -> None:
    with pytest.raises(ValueError, match="4 streams need more than as many tokens; got 4"):
        Streams(torch.arange(4), 4, 2)


@pytest.mark.parametrize("option", ["batch_size", "segment"])
def test_numbers_out_of_range(option: str) -> None:
    numbers = {"batch_size": 2, "segment": 2, option: 0}
    with pytest.raises(ValueError, match=f"{option} must be a whole number, at least 1"):
        Streams(torch.arange(9), **numbers)
