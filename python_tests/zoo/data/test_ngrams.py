"""Unigram and Kneser–Ney bigram against their formulas with dictionaries, and as distributions."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch

from deq_zoo.data import KneserNeyBigram, Unigram

V = 12


def _text(length: int = 400) -> torch.Tensor:
    # Token V - 1 never occurs, V - 2 only at the very end, so that nothing follows it.
    tokens = (torch.rand(length) ** 2 * (V - 2)).long()
    return torch.cat((tokens, torch.tensor([V - 2])))


def _kneser_ney(text: list[int], v: int, w: int) -> float:
    pairs = Counter(pairwise(text))
    before = Counter(b for _, b in pairs)

    def discount(counts: Counter[object]) -> float:
        kinds = Counter(counts.values())
        return kinds[1] / (kinds[1] + 2 * kinds[2]) if kinds[1] and kinds[2] else 0.5

    e = discount(Counter(before))
    q = max(before[w] - e, 0) / len(pairs) + e * len(before) / len(pairs) / V
    total = sum(count for (a, _), count in pairs.items() if a == v)
    if total == 0:
        return q
    d = discount(Counter(pairs))
    kinds = sum(1 for a, _ in pairs if a == v)
    return max(pairs[v, w] - d, 0) / total + d * kinds / total * q


def _all_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    return pairs[:, 0].view(V, V), pairs[:, 1].view(V, V)


def test_kneser_ney_is_its_formula() -> None:
    text = _text()
    model = KneserNeyBigram.fit(text, V)
    first, second = _all_pairs()
    expected = [[_kneser_ney(text.tolist(), v, w) for w in range(V)] for v in range(V)]
    torch.testing.assert_close(
        (-model.nll(first, second)).exp(), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize("length", [2, 5, 400])
def test_probabilities_add_up(length: int) -> None:
    text = _text(length)
    first, second = _all_pairs()
    for model in (KneserNeyBigram.fit(text, V), Unigram.fit(text, V)):
        p = (-model.nll(first, second)).exp()
        torch.testing.assert_close(p.sum(1), torch.ones(V, dtype=torch.float64))
        assert (p > 0).all()


def test_unigram_counts() -> None:
    model = Unigram.fit(torch.tensor([0, 0, 2], dtype=torch.int32), 4)
    nll = model.nll(torch.zeros(4, dtype=torch.int64), torch.arange(4))
    assert nll.tolist() == pytest.approx([math.log(7 / n) for n in (3, 1, 2, 1)])


def test_a_bigram_text_is_learnt() -> None:
    text = torch.arange(600) % 6
    x, y = text[:-1], text[1:]
    bigram = KneserNeyBigram.fit(text, 6).nll(x, y).mean().exp()
    assert bigram < 1.05
    assert Unigram.fit(text, 6).nll(x, y).mean().exp() == pytest.approx(6, rel=1e-3)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least two tokens; got 1"):
        KneserNeyBigram.fit(torch.tensor([0]), 3)
    for fit in (Unigram.fit, KneserNeyBigram.fit):
        with pytest.raises(ValueError, match=r"numbers below vocabulary = 3.* from 0 to 3"):
            fit(torch.tensor([0, 3]), 3)
    with pytest.raises(ValueError, match=r"got 0 tokens\."):
        Unigram.fit(torch.zeros(0, dtype=torch.int64), 3)
