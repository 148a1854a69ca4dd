"""Unigram and Kneser–Ney bigram models: what a language model must beat to have learnt anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Unigram:
    """p(w) = (c(w) + 1) / (N + V), whatever came before.

    Attributes:
        probability: [V] float64.
    """

    probability: Tensor

    @staticmethod
    def fit(tokens: Tensor, vocabulary: int) -> Unigram:
        """From training tokens [N], for token numbers below `vocabulary`.

        Raises:
            ValueError: there are no tokens, or one is not below `vocabulary`.
        """
        counts = _counts(tokens, vocabulary).double()
        return Unigram((counts + 1.0) / (counts.sum() + vocabulary))

    def nll(self, previous: Tensor, following: Tensor) -> Tensor:
        """-log p(following) in nats, float64, of the shape of `following`; `previous` is unused."""
        return -self.probability.log()[following]


@dataclass(frozen=True)
class KneserNeyBigram:
    """Interpolated Kneser–Ney with absolute discounts.

    p(w | v) = max(c(v w) − d, 0) / c(v ·) + d n(v ·) / c(v ·) · q(w), with
    q(w)     = max(n(· w) − e, 0) / n(· ·) + e n(·) / n(· ·) / V,

    where c counts occurrences, n(v ·) the different words after v, n(· w) those before w, n(· ·)
    different pairs, n(·) words that follow any, V the vocabulary. The discounts are
    n₁ / (n₁ + 2 n₂), n_k being the number of pairs that occur k times (for e: of words that follow
    k different ones). After a word that was never followed by any, p(w | v) = q(w).

    Source: Kneser and Ney 1995; Chen and Goodman 1999, "An empirical study of smoothing techniques
    for language modeling", equations 15 and 16.

    Attributes:
        continuation: q, [V] float64.
        pairs: v V + w of the pairs that occur, ascending, int64.
        discounted: max(c(v w) − d, 0) / c(v ·) of each pair, float64.
        backoff: d n(v ·) / c(v ·), [V] float64; 1 where c(v ·) = 0.
    """

    continuation: Tensor
    pairs: Tensor
    discounted: Tensor
    backoff: Tensor

    @staticmethod
    def fit(tokens: Tensor, vocabulary: int) -> KneserNeyBigram:
        """From training tokens [N], for token numbers below `vocabulary`.

        Raises:
            ValueError: there are fewer than two tokens, or one is not below `vocabulary`.
        """
        if len(tokens) < 2:
            raise ValueError(f"a bigram model needs at least two tokens; got {len(tokens)}.")
        _counts(tokens, vocabulary)
        first, second = tokens[:-1].long(), tokens[1:].long()
        pairs, counts = (first * vocabulary + second).unique(return_counts=True)
        discount = _discount(counts)
        before, after = pairs // vocabulary, pairs % vocabulary

        followed = torch.bincount(first, minlength=vocabulary).double()
        discounted = (counts - discount).clamp(min=0.0) / followed[before]
        kinds_after = torch.bincount(before, minlength=vocabulary).double()
        backoff = torch.where(followed > 0, discount * kinds_after / followed, 1.0)

        kinds_before = torch.bincount(after, minlength=vocabulary)
        lower = _discount(kinds_before)
        spread = lower * (kinds_before > 0).sum() / len(pairs) / vocabulary
        continuation = (kinds_before - lower).clamp(min=0.0) / len(pairs) + spread
        return KneserNeyBigram(continuation, pairs, discounted, backoff)

    def nll(self, previous: Tensor, following: Tensor) -> Tensor:
        """-log p(following | previous) in nats, float64, of their common shape."""
        pair = previous.long() * len(self.continuation) + following.long()
        place = torch.searchsorted(self.pairs, pair).clamp(max=len(self.pairs) - 1)
        seen = torch.where(self.pairs[place] == pair, self.discounted[place], 0.0)
        return -(seen + self.backoff[previous] * self.continuation[following]).log()


def _counts(tokens: Tensor, vocabulary: int) -> Tensor:
    if not len(tokens) or int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
        raise ValueError(
            f"the training tokens must be numbers below vocabulary = {vocabulary}, at least one of "
            f"them; got {len(tokens)} tokens"
            + (f" from {int(tokens.min())} to {int(tokens.max())}." if len(tokens) else ".")
        )
    return torch.bincount(tokens.long(), minlength=vocabulary)


def _discount(counts: Tensor) -> float:
    """n₁ / (n₁ + 2 n₂); 0.5 where nothing occurs once, or everything that occurs does so once."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once and twice else 0.5
