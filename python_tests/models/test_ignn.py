"""IGNN against dense algebra, its two paths against each other, and its bound."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn import functional as F

import deq_kernels as dk
from deq_kernels.models import IGNN, IGNNConfig
from deq_kernels.models.ignn import radius_of
from deq_kernels.models.ignn.head import pool
from deq_kernels.nn import perron_frobenius_bound
from deq_zoo.data import Graphs, generate_chains, load_karate
from python_tests.models.ignn_problems import (
    GRAPHS,
    NODES,
    SIZES,
    TIGHT,
    dense_of,
    graphs_of,
    model_of,
    no_graphs,
)
from python_tests.tolerances import assert_close

DOUBLE = torch.float64
SOLVER = dk.FixedPoint(max_steps=300, rtol=0.0, atol=1e-11)
PHI = {"tanh": torch.tanh, "relu": F.relu, "elu": F.elu, "sigmoid": F.sigmoid}


def dense_states(model: IGNN, graphs: Graphs) -> Tensor:
    """The last layer's states as the paper writes them, feature-major, a graph at a time."""
    dense, ptr = dense_of(graphs.adjacency), graphs.adjacency.graph_ptr.tolist()
    phi = PHI[model.config.activation]
    found = []
    for start, end in pairwise(ptr):
        a, u = dense[start:end, start:end], graphs.features[start:end].T
        for index, layer in enumerate(model.layers):
            b = layer.input_weight @ u @ a
            if model.config.local_injection == "trained":
                b = b + layer.local_weight @ u + layer.bias[:, None]
            x = torch.zeros_like(b)
            for _ in range(300):
                x = phi(layer.weight @ x @ a + b)
            if model.config.skips:
                skip = model.skips[index]
                x = x + skip.weight @ u + skip.bias[:, None]
                x = x if index + 1 == len(model.layers) else F.elu(x)
            u = x
        found.append(u.T)
    return torch.cat(found)


@pytest.mark.parametrize("cell", ["structured", "generic"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "relu", "skips": True, "head": False},
        {"local_injection": "trained", "activation": "sigmoid"},
        {"local_injection": "held", "unit_states": True, "activation": "elu"},
        {"target": "graphs"},
        {"target": "graphs", "pooling": "mean", "skips": True},
        {"target": "graphs", "pooling": "max"},
    ],
    ids=str,
)
def test_it_is_the_formula(changes: dict[str, Any], symmetric: bool, cell: str) -> None:
    config = replace(NODES, cell=cell, **changes)
    graphs = config.prepare(graphs_of(symmetric=symmetric))
    model = model_of(config)
    scores = model(graphs)
    x = dense_states(model, graphs)
    if config.target == "graphs":
        parts = x.split(list(SIZES))
        reduce = {"sum": Tensor.sum, "mean": Tensor.mean, "max": Tensor.amax}[config.pooling]
        rows = [reduce(part, 0) if len(part) else x.new_zeros(x.shape[1]) for part in parts]
        expected = model.head.layers(torch.stack(rows))
    else:
        if config.unit_states:
            x = x / x.norm(dim=1, keepdim=True)
        expected = x if model.head.linear is None else x @ model.head.linear.weight.T
    assert_close(scores, expected, DOUBLE)
    assert all(solution.converged.all() for solution in model.last_solutions)
    assert [len(solution.steps) for solution in model.last_solutions] == [len(SIZES)] * 2


@pytest.mark.parametrize(
    "gradient",
    [
        dk.Implicit(solver=TIGHT),
        dk.Neumann(steps=4, damping=0.6),
        dk.Unrolled(steps=4, damping=0.6),
        dk.JacobianFree(),
    ],
    ids=lambda gradient: type(gradient).__name__,
)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("config", [NODES, GRAPHS], ids=["nodes", "graphs"])
def test_both_paths_agree(config: IGNNConfig, symmetric: bool, gradient: dk.Gradient) -> None:
    graphs = config.prepare(graphs_of(symmetric=symmetric))
    results = []
    for cell in ("structured", "generic"):
        chosen = replace(config, cell=cell, local_injection="trained", skips=True)
        model = model_of(chosen, gradient=gradient)
        scores = model(graphs)
        weights = torch.linspace(-1, 1, scores.numel(), dtype=DOUBLE).view_as(scores)
        (weights * scores.square()).sum().backward()
        results.append((model, scores))
    (structured, one), (generic, other) = results
    assert_close(one, other, DOUBLE)
    assert structured.state_dict().keys() == generic.state_dict().keys()
    for name, parameter in structured.named_parameters():
        expected = generic.get_parameter(name).grad
        assert expected.abs().max() > 1e-9, name
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-11, msg=name)


def test_a_gradient_of_the_values() -> None:
    """Of a directed A, through the injection and the solve, on both paths."""
    raw = graphs_of()
    graphs = NODES.prepare(raw)
    found = []
    for cell in ("structured", "generic"):
        model = model_of(replace(NODES, cell=cell))
        values = graphs.adjacency.values.clone().requires_grad_()
        moved = replace(graphs, adjacency=graphs.adjacency.with_values(values))
        found.append(torch.autograd.grad(model(moved).square().sum(), values)[0])
    assert_close(found[0], found[1], DOUBLE)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("cell", ["structured", "generic"])
def test_the_gradient_is_the_derivative(cell: str, symmetric: bool) -> None:
    config = replace(GRAPHS, cell=cell, widths=(2,), outputs=1)
    graphs = config.prepare(graphs_of(symmetric=symmetric, sizes=(3, 0, 1)))
    model = model_of(config, solver=SOLVER, gradient=dk.Implicit(solver=SOLVER))
    names = [name for name, _ in model.named_parameters()]

    def scores(features: Tensor, *parameters: Tensor) -> Tensor:
        moved = replace(graphs, features=features)
        return functional_call(model, dict(zip(names, parameters, strict=True)), (moved,))

    leaves = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    assert gradcheck(scores, (graphs.features.clone().requires_grad_(), *leaves))


@pytest.mark.parametrize(
    "gradient", [dk.Implicit(solver=dk.Broyden(max_steps=60, rtol=1e-13)), dk.Shine()], ids=repr
)
def test_the_generic_path_takes_any_solver_and_gradient(gradient: dk.Gradient) -> None:
    """A graph is one sample, however many nodes it has."""
    graphs = NODES.prepare(graphs_of())
    picard = model_of(NODES)
    solver = dk.Broyden(max_steps=80, rtol=1e-13, stall_steps=None)
    broyden = model_of(replace(NODES, cell="generic"), solver=solver, gradient=gradient)
    gradients = []
    for model in (picard, broyden):
        scores = model(graphs)
        scores.square().sum().backward()
        gradients.append((scores, torch.cat([p.grad.flatten() for p in model.parameters()])))
    (one, exact), (other, estimate) = gradients
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    cosine = torch.cosine_similarity(exact, estimate, dim=0)
    assert cosine > (0.9 if isinstance(gradient, dk.Shine) else 1 - 1e-9)
    steps = broyden.last_solutions[0].steps
    assert len(steps) == len(SIZES)
    assert len(set(steps.tolist())) > 1


def test_graphs_do_not_mix() -> None:
    for config in (NODES, replace(NODES, cell="generic")):
        graphs = [NODES.prepare(graphs_of(sizes=(size,))) for size in (4, 1, 6)]
        model = model_of(config)
        together = model(Graphs.join(graphs))
        assert_close(together, torch.cat([model(graph) for graph in graphs]), DOUBLE)


@pytest.mark.parametrize("sizes", [(), (0,), (0, 0)])
@pytest.mark.parametrize("cell", ["structured", "generic"])
@pytest.mark.parametrize("target", ["nodes", "graphs"])
def test_no_nodes(target: str, cell: str, sizes: tuple[int, ...]) -> None:
    config = replace(NODES, target=target, cell=cell)
    empty = graphs_of(sizes=sizes) if sizes else no_graphs()
    scores = model_of(config)(config.prepare(empty))
    assert len(empty) == len(sizes)
    rows = len(sizes) if target == "graphs" else 0
    assert scores.shape == (rows, 3)
    scores.sum().backward()


def test_unit_vectors_are_a_unit_matrix() -> None:
    for skips in (False, True):
        config = replace(NODES, features=9, skips=skips, local_injection="trained")
        graphs = config.prepare(graphs_of())
        model = model_of(config)
        unit = replace(graphs, features=torch.eye(9, dtype=DOUBLE))
        assert_close(model(replace(graphs, features=None)), model(unit), DOUBLE)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_the_projection_keeps_it_well_posed(normalized: bool, symmetric: bool) -> None:
    """Whatever an optimiser does to W, from the start on, and for raw weights too."""
    config = replace(NODES, normalized=normalized, kappa=0.95)
    graphs = config.prepare(graphs_of(symmetric=symmetric, sizes=(6, 0, 8)))
    radius = 1.0 if normalized else radius_of(graphs)
    solver = dk.FixedPoint(max_steps=500, rtol=1e-9)
    model = model_of(config, radius=radius, solver=solver)
    for round_ in range(3):
        for layer in model.layers:
            assert (perron_frobenius_bound(layer.weight, graphs.adjacency) <= 0.951).all()
            norm = float(layer.weight.detach().abs().sum(1).max())
            assert norm == pytest.approx(0.95 / model.radius, rel=1e-6)
        model(graphs)
        assert all(solution.converged.all() for solution in model.last_solutions)
        with torch.no_grad():
            for layer in model.layers:
                layer.weight.add_(torch.randn_like(layer.weight), alpha=3.0 + round_)
        assert (perron_frobenius_bound(model.layers[0].weight, graphs.adjacency) > 1).any()
        model.project_()


def test_the_radius_bounds_every_graph() -> None:
    graphs = graphs_of(sizes=(5, 0, 7))
    largest = torch.linalg.eigvals(dense_of(graphs.adjacency)).abs().max()
    assert float(largest) <= radius_of(graphs) <= 1.01 * float(largest) + 1e-5
    # A normalised A has a radius of 1.
    assert radius_of(graphs_of(sizes=(5, 7)).normalized()) == pytest.approx(1.0, abs=2e-2)
    assert radius_of(graphs_of(sizes=(0,))) == pytest.approx(1e-5)


def test_held_parameters_have_no_effect_and_stay() -> None:
    config = replace(NODES, local_injection="held")
    graphs = config.prepare(graphs_of())
    model = model_of(config)
    before = model(graphs)
    before.square().sum().backward()
    for layer in model.layers:
        for held in (layer.local_weight, layer.bias):
            assert not held.requires_grad
            with torch.no_grad():
                held.add_(1.0)
    assert torch.equal(model(graphs), before)


def test_pretraining_is_backpropagation_through_the_map() -> None:
    graphs = NODES.prepare(graphs_of())
    config = replace(NODES, widths=(4,), head=False, outputs=4)
    model = model_of(config)
    scores = model(graphs, pretrain_steps=3)
    dense = dense_of(graphs.adjacency).T
    (layer,) = model.layers
    b = dense @ graphs.features @ layer.input_weight.T
    z = torch.zeros_like(b)
    for _ in range(3):
        z = torch.tanh(dense @ z @ layer.weight.T + b)
    assert_close(scores, z, DOUBLE)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(scores.square().sum(), parameters),
        torch.autograd.grad(z.square().sum(), parameters),
        strict=True,
    ):
        assert_close(one, other, DOUBLE)
    assert model.last_solutions == ()


@pytest.mark.parametrize("cell", ["structured", "generic"])
def test_evaluation_uses_its_own_solver(cell: str) -> None:
    config = replace(NODES, cell=cell)
    model = model_of(
        config,
        solver=dk.FixedPoint(max_steps=3, rtol=0.0),
        eval_solver=dk.FixedPoint(max_steps=5, rtol=0.0, damping=0.7),
    )
    graphs = config.prepare(graphs_of(sizes=(4, 5)))
    for training, steps in ((True, 3), (False, 5)):
        model.train(training)
        model(graphs)
        assert model.last_solutions[0].steps.tolist() == [steps] * 2


def test_geometric_objects_are_prepared() -> None:
    raw = graphs_of(sizes=(4,))
    rows = raw.adjacency.pattern.rows
    data = SimpleNamespace(
        edge_index=torch.stack([rows.col, rows.row]),
        edge_weight=raw.adjacency.row_values(),
        x=raw.features,
        num_nodes=4,
    )
    for normalized in (True, False):
        config = replace(NODES, normalized=normalized)
        model = model_of(config, radius=4.0)
        assert torch.equal(model(data), model(config.prepare(raw)))


def test_a_copy_has_its_own_parameters() -> None:
    """The generic layer's map is the copy's, not the original's."""
    config = replace(NODES, cell="generic")
    graphs = config.prepare(graphs_of())
    model = model_of(config)
    twin = copy.deepcopy(model)
    before = model(graphs)
    nn.init.zeros_(twin.layers[0].weight)
    assert not torch.equal(twin(graphs), before)
    assert torch.equal(model(graphs), before)


@pytest.mark.filterwarnings("ignore::deq_kernels.UnconvergedWarning")  # an absolute tolerance
@pytest.mark.parametrize("cell", ["structured", "generic"])
def test_under_autocast(cell: str) -> None:
    config = replace(GRAPHS, cell=cell)
    model = model_of(config, solver=None, gradient=None).float()
    graphs = config.prepare(graphs_of()).to(dtype=torch.float32)
    expected = model(graphs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(graphs)
    assert scores.dtype == torch.bfloat16
    torch.testing.assert_close(scores.float(), expected, rtol=0.1, atol=0.1)
    scores.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("pooling", ["sum", "mean", "max"])
def test_pooling_is_differentiable(pooling: str) -> None:
    adjacency = graphs_of().adjacency
    x = torch.randn(adjacency.nodes, 2, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(lambda x: pool(x, adjacency, pooling), x)


def test_errors() -> None:
    graphs = NODES.prepare(graphs_of())
    model = model_of(NODES)
    with pytest.raises(ValueError, match="2 features per node, as the config says; got 5"):
        model(graphs_of(features=5))
    with pytest.raises(ValueError, match="got 9, the nodes' unit vectors"):
        model(replace(graphs, features=None))
    with pytest.raises(ValueError, match="pretrain_steps must be a whole number, at least 1"):
        model(graphs, pretrain_steps=0)
    with pytest.raises(TypeError, match="dtype and device of the adjacency"):
        model.float()(replace(graphs, features=graphs.features.float()))
    with pytest.raises(ValueError, match="radius must be finite and above 0; got 0"):
        IGNN(NODES, radius=0.0)


ONLY_GENERIC: list[dict[str, Any]] = [
    {"solver": dk.Broyden()},
    {"solver": dk.FixedPoint(synchronized=True)},
    {"eval_solver": dk.Anderson()},
    {"gradient": dk.Implicit(solver=dk.GMRES())},
    {"gradient": dk.JacobianFree(refine=2)},
    {"gradient": dk.Limited()},
    {"solver": dk.FixedPoint(cuda_graph=True)},
]


@pytest.mark.parametrize("options", ONLY_GENERIC, ids=str)
def test_the_structured_cell_is_taken_where_it_can_be(options: dict[str, Any]) -> None:
    assert IGNN(NODES).layers[0].deq.solves_in_one_op()
    assert not IGNN(replace(NODES, cell="generic")).layers[0].deq.solves_in_one_op()
    model = IGNN(NODES, **options).train("eval_solver" not in options)
    assert not model.layers[0].deq.solves_in_one_op()
    with pytest.raises(ValueError, match='cell="structured" has the solver FixedPoint and'):
        IGNN(replace(NODES, cell="structured"), **options)


@pytest.mark.parametrize("gradient", [dk.Implicit(), dk.Neumann(), dk.Unrolled()], ids=repr)
def test_gradients_of_the_structured_cell(gradient: dk.Gradient) -> None:
    assert IGNN(NODES, gradient=gradient).layers[0].deq.solves_in_one_op()


def test_the_default_is_the_published_iteration() -> None:
    for cell in ("structured", "generic"):
        (layer, _) = IGNN(replace(NODES, cell=cell)).layers
        deq = layer.deq
        assert deq.solver == deq.eval_solver == dk.FixedPoint(max_steps=300, rtol=1e-4)
        assert deq.gradient == dk.Implicit(solver=deq.solver)


@pytest.mark.parametrize(
    ("cell", "norm"),
    [("structured", "rows"), ("structured", "l2"), ("structured", "max"), ("generic", "rows")],
)
def test_what_a_tolerance_is_of(cell: str, norm: str) -> None:
    """A node's row, or a graph's whole X: the largest magnitude, as published, or the 2-norm, which
    the generic path has."""
    config = replace(NODES, cell=cell, norm=norm)
    graphs = config.prepare(graphs_of(sizes=(4, 5)))
    (layer, _) = model_of(config, solver=dk.FixedPoint(max_steps=3, rtol=0.0)).layers
    with torch.no_grad():
        f = layer(graphs.features, graphs.adjacency)
    parts = (f - nodes_of(layer.last_solution.z, [4, 5])).split([4, 5])
    if cell == "structured" and norm == "rows":
        residuals = [part.norm(dim=1).max() for part in parts]
    else:
        order = torch.inf if norm == "max" else 2.0
        residuals = [torch.linalg.vector_norm(part, order) for part in parts]
    assert_close(layer.last_solution.residual, torch.stack(residuals), DOUBLE)


def nodes_of(z: object, sizes: list[int]) -> Tensor:
    """The rows of all nodes, from a state that may have as many for each graph as the longest."""
    assert isinstance(z, Tensor)
    return z if z.ndim == 2 else torch.cat([x[:n] for x, n in zip(z, sizes, strict=True)])


@pytest.mark.parametrize("cell", ["structured", "generic"])
def test_a_warm_start(cell: str) -> None:
    config = replace(NODES, cell=cell)
    solver = dk.FixedPoint(max_steps=500, rtol=0.0, atol=1e-9)
    model = model_of(config, solver=solver, warm_start=True)
    graphs = config.prepare(graphs_of(sizes=(4, 5)))
    first = model(graphs)
    cold = model.last_solutions[0].steps.clone()
    again = model(graphs)
    assert (cold > 3).all()
    assert model.last_solutions[0].steps.tolist() == [1, 1]
    torch.testing.assert_close(again, first, rtol=0, atol=1e-7)
    # Other graphs start from zero.
    model(config.prepare(graphs_of(sizes=(4, 6))))
    assert (model.last_solutions[0].steps > 3).all()


def accuracy_after(model: IGNN, splits: Any, *, steps: int, learning_rate: float = 0.02) -> float:
    """Test accuracy after a few steps of Adam, with the projection after each."""
    (train,), (test,) = splits.train, splits.test
    graphs = model.config.prepare(train)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        chosen = train.counted
        F.cross_entropy(model(graphs)[chosen], train.labels[chosen]).backward()
        optimizer.step()
        model.project_()
    model.eval()
    with torch.no_grad():
        right = model(graphs).argmax(1) == test.labels
    return float(right[test.counted].float().mean())


@pytest.mark.parametrize(
    "gradient", [None, dk.Unrolled(steps=5, damping=0.5)], ids=["implicit", "unrolled"]
)
def test_chains_are_learned(gradient: dk.Gradient | None) -> None:
    """What the first node shows is known at the last one; half of all would be chance."""
    splits = generate_chains(chains=8, length=8, train=30, validation=1, test=90)
    torch.manual_seed(1)
    model = IGNN(replace(IGNNConfig.preset("chains"), dropout=0.0), gradient=gradient)
    assert accuracy_after(model, splits, steps=100) >= 0.95


def test_the_karate_club_is_told_apart() -> None:
    torch.manual_seed(0)
    model = IGNN(IGNNConfig.preset("karate"))
    assert accuracy_after(model, load_karate(), steps=60) >= 0.85
