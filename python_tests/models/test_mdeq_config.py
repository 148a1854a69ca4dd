"""The presets have the published sizes, and impossible shapes are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from deq_kernels.models.mdeq import MDEQ, MDEQConfig
from deq_kernels.models.mdeq.config import PRESETS

CELL_PARAMETERS = {
    "cifar10_tiny": 111_792,
    "cifar10_large": 8_716_192,
    "imagenet_small": 8_716_192,
}
PARAMETERS = {
    "cifar10_tiny": 158_986,
    "cifar10_large": 11_098_398,
    "imagenet_small": 16_808_936,
}
STATE_DIMS = {
    "cifar10_tiny": 30_720,
    "cifar10_large": 61_440,
    "imagenet_small": 188_160,
}


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = MDEQ(MDEQConfig.preset(name))
    assert _count(model) == PARAMETERS[name]
    assert _count(model.cell) == CELL_PARAMETERS[name]
    assert model.config.state_dim == STATE_DIMS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_shapes_through_the_model(name: str) -> None:
    config = MDEQConfig.preset(name)
    with torch.device("meta"):
        model = MDEQ(config).eval()
        u = model.stem(torch.empty(2, config.image_channels, *config.image_size))
        z = tuple(torch.empty(2, *shape) for shape in config.state_shapes)
        f_z = model.cell(z, u)
        scores = model.head(f_z)
    assert u.shape == (2, *config.state_shapes[0])
    assert [branch.shape[1:] for branch in f_z] == list(config.state_shapes)
    assert sum(branch[0].numel() for branch in f_z) == config.state_dim
    assert scores.shape == (2, config.classes)


def test_post_affine_adds_a_scale_and_a_shift_per_channel() -> None:
    config = MDEQConfig.preset("cifar10_tiny")
    with torch.device("meta"):
        plain = MDEQ(replace(config, post_affine=False))
    assert _count(plain.cell) == CELL_PARAMETERS["cifar10_tiny"] - 2 * sum(config.channels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_channels": (8,)}, "one entry per branch"),
        ({"channels": (), "head_channels": ()}, "one entry per branch"),
        ({"channels": (24, 20)}, "multiple of groups = 8"),
        ({"channels": (24, 0)}, r"channels needs whole numbers of at least 1, got \(24, 0\)"),
        ({"head_channels": (8, 0)}, r"head_channels needs whole .* got \(8, 0\)"),
        ({"classes": 0}, "classes needs whole numbers of at least 1, got 0"),
        ({"groups": 0}, "groups needs whole numbers of at least 1, got 0"),
        ({"expansion": 2.5}, "expansion needs whole numbers of at least 1, got 2.5"),
        ({"expansion": 0}, "expansion needs whole numbers of at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must lie in \[0, 1\), got -0.1"),
        ({"dropout": float("nan")}, r"dropout must lie in \[0, 1\), got nan"),
        ({"stem_downsamplings": 3}, "stem_downsamplings must be 0, 1 or 2, got 3"),
        ({"image_size": (32, 31)}, "multiples of 2"),
        ({"image_size": (32, 30), "stem_downsamplings": 1}, "multiples of 4"),
    ],
)
def test_impossible_shapes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MDEQConfig.preset("cifar10_tiny"), **change)


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match=r"'cifar100'; there are digits, cifar10_tiny"):
        MDEQConfig.preset("cifar100")
