"""The presets have the published sizes, and impossible shapes are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from deq_kernels.models import DEQTransformer, TransformerConfig
from deq_kernels.models.transformer.config import PRESETS

PUBLISHED = [name for name in PRESETS if name.startswith("wikitext103")]
TINY = TransformerConfig(
    vocabulary=50,
    width=8,
    heads=2,
    inner_width=12,
    segment=4,
    memory=4,
    cutoffs=(20, 40),
    divisor=2,
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = DEQTransformer(TransformerConfig.preset(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == 97_851_488
    assert sum(parameter.numel() for parameter in model.cell.parameters()) == 69_753_000
    assert model.config.state_dim == 105_000


def test_shapes() -> None:
    assert TINY.head_width == 4
    assert TINY.embedding_widths == (8, 4, 2)
    assert TINY.clusters == (range(20), range(20, 40), range(40, 50))
    assert TINY.state_dim == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 9, "heads": 3}, "even and a multiple of heads = 3; got 9"),
        ({"heads": 3}, "even and a multiple of heads = 3; got 8"),
        ({"cutoffs": (20, 20)}, "cutoffs must be whole numbers, increasing"),
        ({"cutoffs": (0,)}, "cutoffs must be whole numbers, increasing"),
        ({"cutoffs": (20, 50)}, "below vocabulary = 50"),
        ({"divisor": 4}, r"got width 8 // divisor 4\^2 = 0"),
        ({"vocabulary": 0}, "vocabulary must be a whole number"),
        ({"segment": 0}, "segment must be a whole number"),
        ({"memory": -1}, "memory must be a whole number"),
        ({"window": 0}, "window must be a whole number"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"attention_dropout": -0.1}, "attention_dropout must be"),
        ({"normalization": "both"}, "normalization must be one of 'post', 'pre'"),
        ({"init_std": 0.0}, "init_std must be finite and above 0"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="is called 'wikitext2'; there are pydoc, wikitext103"):
        TransformerConfig.preset("wikitext2")
