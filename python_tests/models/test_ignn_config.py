"""Published sizes of IGNN, and configurations that are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from deq_kernels.models import IGNN, IGNNConfig
from deq_kernels.models.ignn.config import PRESETS
from python_tests.models.ignn_problems import NODES


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("cox2", 37_634), ("proteins", 33_538), ("ppi", 4_656_931), ("chains", 1_888)],
)
def test_parameter_counts(preset: str, parameters: int) -> None:
    with torch.device("meta"):
        model = IGNN(IGNNConfig.preset(preset))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_amazon_has_one_layer_on_unit_vectors() -> None:
    config = IGNNConfig.preset("amazon")
    with torch.device("meta"):
        model = IGNN(config)
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == {
        "layers.0.weight": [128, 128],
        "layers.0.input_weight": [128, 334_863],
        "head.linear.weight": [58, 128],
    }
    assert (config.kappa, config.unit_states, config.dropout) == (0.95, False, 0.5)


def test_presets_have_the_published_options() -> None:
    for name, kappa, normalized in (
        ("chains", 0.9, True),
        ("cox2", 0.9, True),
        ("proteins", 0.9, True),
        ("ppi", 0.98, False),
    ):
        config = PRESETS[name]
        assert (config.kappa, config.normalized) == (kappa, normalized)
        assert config.activation == "relu"


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="no IGNN preset is called 'cora'; there are chains,"):
        IGNNConfig.preset("cora")


def test_parameters_start_within_their_range() -> None:
    model = IGNN(replace(NODES, widths=(25,), kappa=0.999, local_injection="held"), radius=1e-3)
    (layer,) = model.layers
    for parameter in layer.parameters():
        assert float(parameter.detach().abs().max()) <= 0.2
    # So small a radius projects nothing: W is as it was drawn.
    assert float(layer.weight.detach().abs().max()) > 0.19


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": 0}, "features must be a whole number, at least 1; got 0"),
        ({"outputs": 1.5}, "outputs must be a whole number"),
        ({"widths": ()}, r"widths must be a tuple, one number per layer; got \(\)"),
        ({"widths": 16}, "widths must be a tuple, one number per layer; got 16"),
        ({"widths": (0,)}, "widths must be a whole number, at least 1; got 0"),
        ({"target": "edges"}, "target must be one of 'graphs', 'nodes'; got 'edges'"),
        ({"kappa": 1.0}, "kappa must be above 0 and below 1; got 1.0"),
        ({"activation": "gelu"}, "activation must be one of 'relu'"),
        ({"local_injection": True}, "local_injection must be one of 'none', 'held', 'trained'"),
        ({"pooling": "mean"}, 'pooling belongs to target="graphs"'),
        ({"target": "graphs", "head": False}, 'belong to target="nodes"'),
        ({"target": "graphs", "unit_states": True}, 'belong to target="nodes"'),
        ({"target": "graphs", "pooling": "median"}, "pooling must be one of"),
        ({"head": False, "outputs": 7}, "must be as wide as there are outputs, 7; got widths"),
        ({"cell": "dense"}, "cell must be one of 'auto', 'structured', 'generic'"),
        ({"normalized": 1}, "normalized must be a bool; got 1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(NODES, **changes)
