"""The chains preset, whose distant nodes have states of 1e-9 and a head that divides by them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deq_kernels as dk
from deq_kernels.models import IGNN, IGNNConfig
from deq_kernels.models.ignn import ImplicitGraphLayer
from deq_zoo.data import Graphs, generate_chains

TIGHT = dk.FixedPoint(max_steps=500, rtol=1e-10)
TO_THE_LAST_DIGIT = dk.FixedPoint(max_steps=500, rtol=0.0)
"""Where the 2-norm of a whole graph decides: until nothing moves."""


def chains(seed: int, dtype: torch.dtype, **options: Any) -> tuple[IGNN, Graphs]:
    torch.manual_seed(seed)
    config = replace(IGNNConfig.preset("chains"), cell=options.pop("cell", "auto"))
    (graphs,) = generate_chains(seed=seed).train
    return IGNN(config, **options).to(dtype), config.prepare(graphs).to("cpu", dtype)


def layer_of(model: IGNN) -> ImplicitGraphLayer:
    (layer,) = model.layers
    assert isinstance(layer, ImplicitGraphLayer)
    return layer


def loss_of(model: IGNN, x: Tensor, graphs: Graphs) -> Tensor:
    assert graphs.labels is not None
    assert graphs.counted is not None
    scores = model.head(x, graphs.adjacency)
    return F.cross_entropy(scores[graphs.counted], graphs.labels[graphs.counted])


def exact_gradient(model: IGNN, graphs: Graphs) -> Tensor:
    """∂L/∂(W, Ω) by the implicit function theorem, chain by chain, with dense matrices."""
    layer = layer_of(model)
    assert isinstance(graphs.features, Tensor)
    nodes, ptr = graphs.adjacency.nodes, graphs.adjacency.graph_ptr.tolist()
    rows = graphs.adjacency.pattern.rows
    transposed = torch.zeros(nodes, nodes, dtype=torch.float64)
    transposed[rows.row, rows.col] = graphs.adjacency.row_values()
    weight, b = layer.weight.detach(), layer.injection(graphs.features, graphs.adjacency).detach()
    x = torch.zeros_like(b)
    for _ in range(300):
        a = transposed @ x @ weight.T + b
        x = torch.relu(a)
    x.requires_grad_()
    (cotangent,) = torch.autograd.grad(loss_of(model, x, graphs), x)
    slopes = (a > 0).double()
    g = torch.zeros_like(b)
    for begin, end in pairwise(ptr):
        part = slice(begin, end)
        matrix = torch.kron(transposed[part, part], weight).T * slopes[part].flatten()
        identity = torch.eye(len(matrix), dtype=torch.float64)
        w = torch.linalg.solve(identity - matrix, cotangent[part].flatten())
        g[part] = slopes[part] * w.view(end - begin, -1)
    of_weight = g.T @ transposed @ x.detach()
    return torch.cat([of_weight.flatten(), (g.T @ transposed @ graphs.features).flatten()])


def gradient_of(model: IGNN, graphs: Graphs) -> Tensor:
    layer = layer_of(model)
    loss = loss_of(model, layer(graphs.features, graphs.adjacency), graphs)
    parts = torch.autograd.grad(loss, (layer.weight, layer.input_weight))
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("cell", "solver", "gradient", "bound"),
    [
        ("structured", TIGHT, dk.Implicit(solver=TIGHT), 1e-8),
        ("structured", TIGHT, dk.Implicit(), 1e-8),
        ("structured", None, None, 1e-4),
        ("generic", TO_THE_LAST_DIGIT, dk.Implicit(solver=TO_THE_LAST_DIGIT), 1e-7),
    ],
    ids=["plain adjoint", "accelerated adjoint", "defaults", "generic"],
)
def test_the_gradient_at_initialisation_is_exact(
    cell: str, solver: dk.Solver | None, gradient: dk.Gradient | None, bound: float, seed: int
) -> None:
    model, graphs = chains(seed, torch.float64, cell=cell, solver=solver, gradient=gradient)
    model.eval()
    expected = exact_gradient(model, graphs)
    assert (gradient_of(model, graphs) - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("seed", range(2))
def test_a_generic_solve_that_ends_early_has_gradients_of_the_right_size(seed: int) -> None:
    """Slopes and states belong together there too, under the published tolerance."""
    solver = dk.FixedPoint(max_steps=300, rtol=0.0, atol=3e-6)
    options = {"cell": "generic", "solver": solver}
    for gradient in (dk.Implicit(solver=TO_THE_LAST_DIGIT), dk.JacobianFree()):
        model, graphs = chains(seed, torch.float64, gradient=gradient, **options)
        model.eval()
        expected = exact_gradient(model, graphs)
        assert gradient_of(model, graphs).norm() < 10 * expected.norm()


def test_both_cells_return_the_same_with_the_same_gradient() -> None:
    """After two steps, where nothing has converged: f of the iterate, and its slopes."""
    solver = dk.FixedPoint(max_steps=2, rtol=0.0)
    got = []
    for cell in ("structured", "generic"):
        options: dict[str, Any] = {"solver": solver, "gradient": dk.JacobianFree(), "cell": cell}
        model, graphs = chains(0, torch.float64, **options)
        layer = layer_of(model)
        with torch.no_grad():
            x = layer(graphs.features, graphs.adjacency)
        assert torch.equal(x, layer(graphs.features, graphs.adjacency))
        got.append((x, gradient_of(model.eval(), graphs)))
    torch.testing.assert_close(got[0][0], got[1][0], rtol=1e-12, atol=1e-15)
    # That of W is a product with the state, of which the generic path has the one before.
    of_input_weight = [gradient[layer.weight.numel() :] for _, gradient in got]
    torch.testing.assert_close(*of_input_weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("clip", [0.5, None])
@pytest.mark.parametrize("seed", [1, 2])
def test_forty_steps_classify_every_node(seed: int, clip: float | None) -> None:
    """Of the recipe's, which clips gradients, and without; the published code takes 40."""
    model, graphs = chains(seed, torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    for _ in range(40):
        optimizer.zero_grad()
        scores = model(graphs)
        F.cross_entropy(scores[graphs.counted], graphs.labels[graphs.counted]).backward()
        if clip is not None:
            for parameter in model.parameters():
                nn.utils.clip_grad_norm_(parameter, clip)
        optimizer.step()
        model.project_()
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(graphs).argmax(1), graphs.labels)
