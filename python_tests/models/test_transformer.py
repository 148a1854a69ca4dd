"""The whole model: equilibrium, gradients, memory, dropout, the Jacobian penalty, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from deq_kernels import (
    Anderson,
    Broyden,
    FixedPoint,
    Gradient,
    Implicit,
    JacobianFree,
    Shine,
    Solver,
    Unrolled,
)
from deq_kernels.models import DEQTransformer, TransformerConfig
from deq_kernels.models.transformer import Memory
from deq_kernels.nn import jacobian_penalty

# Random weights, and as few steps as a test needs.
pytestmark = pytest.mark.filterwarnings("ignore::deq_kernels.UnconvergedWarning")

TINY = TransformerConfig(
    vocabulary=20,
    width=8,
    heads=2,
    inner_width=16,
    segment=5,
    memory=5,
    cutoffs=(12,),
    divisor=2,
    init_std=0.3,
)
EXACT = Anderson(max_steps=150, rtol=1e-13)


def _model(config: TransformerConfig = TINY, **options: Any) -> DEQTransformer:
    """In float64, and with a cell that contracts.

    LN(z + o) alone keeps a normalised z; what draws z elsewhere is an o that is long, and depends
    on u more than on z.
    """
    options = {"solver": EXACT, "gradient": Implicit(solver=EXACT)} | options
    model = DEQTransformer(config, **options).double()
    cell = model.cell
    with torch.no_grad():
        for linear, factor in (
            (cell.attention.qkv, 0.3),
            (cell.attention.out, 16.0),
            (cell.widen, 0.5),
            (cell.narrow, 0.5),
        ):
            dict(linear.named_parameters())["parametrizations.weight.original0"].mul_(factor)
    return model


def _tokens(batch: int = 3, length: int = 5) -> Tensor:
    return torch.randint(0, 20, (batch, length))


def _converged(model: DEQTransformer) -> None:
    solution = model.last_solution
    assert solution is not None
    assert solution.converged.all()


@pytest.mark.parametrize("normalization", ["post", "pre"])
def test_a_memory_is_as_good_as_the_tokens_themselves(
    normalization: Literal["post", "pre"],
) -> None:
    """No token sees a later one, so the equilibrium of ten tokens is that of five, then five."""
    model = _model(replace(TINY, normalization=normalization, window=7)).eval()
    tokens = _tokens(length=10)
    whole = model(tokens, tokens)
    _converged(model)
    first = model(tokens[:, :5], tokens[:, :5])
    second = model(tokens[:, 5:], tokens[:, 5:], memory=first.memory)
    _converged(model)
    torch.testing.assert_close(torch.cat((first.hidden, second.hidden), 1), whole.hidden)
    torch.testing.assert_close(torch.cat((first.nll, second.nll), 1), whole.nll)
    # Without the memory the second half is another one.
    assert (model(tokens[:, 5:]).hidden - whole.hidden[:, 5:]).abs().max() > 1e-3


def test_a_memory_keeps_its_last_tokens() -> None:
    model = _model().eval()
    tokens = _tokens(length=3)
    first = model(tokens)
    second = model(tokens, memory=first.memory)
    assert (first.memory.length, second.memory.length) == (3, 5)
    torch.testing.assert_close(second.memory.z[:, 2:], second.hidden)
    torch.testing.assert_close(second.memory.z[:, :2], first.hidden[:, 1:])
    third = model(_tokens(), memory=second.memory)
    torch.testing.assert_close(third.memory.z, third.hidden)
    assert third.memory.u.shape == (3, 5, 24)
    assert not second.memory.z.requires_grad
    assert not second.memory.u.requires_grad
    assert _model(replace(TINY, memory=0)).eval()(tokens).memory is None


@pytest.mark.parametrize("normalization", ["post", "pre"])
def test_implicit_gradient_is_that_of_the_unrolled_iteration(
    normalization: Literal["post", "pre"],
) -> None:
    config = replace(TINY, normalization=normalization)
    model = _model(config, solver=FixedPoint(max_steps=250, rtol=1e-12))
    tokens, targets = _tokens(), _tokens()
    memory = Memory(torch.randn(3, 5, 8).double(), torch.randn(3, 5, 24).double())
    found = []
    for depth in (None, 250):
        model.zero_grad()
        model(tokens, targets, memory=memory, pretrain_steps=depth).nll.mean().backward()
        found.append([parameter.grad for parameter in model.parameters()])
        if depth is None:
            _converged(model)
    for name, implicit, unrolled in zip(
        dict(model.named_parameters()), found[0], found[1], strict=True
    ):
        assert unrolled is not None
        assert unrolled.abs().max() > 1e-9, name
        torch.testing.assert_close(implicit, unrolled, rtol=1e-6, atol=1e-8)


def test_implicit_gradient_is_the_derivative_of_the_loss() -> None:
    model = _model().eval()
    tokens, targets = _tokens(), _tokens()
    parameters = list(model.parameters())
    directions = [torch.randn_like(parameter) for parameter in parameters]
    model(tokens, targets).nll.mean().backward()
    expected = sum(
        float((parameter.grad * direction).sum())
        for parameter, direction in zip(parameters, directions, strict=True)
        if parameter.grad is not None
    )

    @torch.no_grad()
    def loss_at(shift: float) -> float:
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.add_(direction, alpha=shift)
        loss: float = model(tokens, targets).nll.mean().item()
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.sub_(direction, alpha=shift)
        return loss

    difference = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6
    assert difference == pytest.approx(expected, rel=1e-5)


ESTIMATORS: dict[str, Callable[[], tuple[Solver, Gradient]]] = {
    "jacobian_free": lambda: (Anderson(max_steps=8), JacobianFree()),
    "shine": lambda: (Broyden(max_steps=8), Shine(fallback=1.3)),
    "unrolled": lambda: (FixedPoint(max_steps=8), Unrolled(steps=3, damping=0.8)),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    solver, gradient = ESTIMATORS[name]()
    config = replace(TINY, dropout=0.1, attention_dropout=0.1)
    model = DEQTransformer(config, solver=solver, gradient=gradient)
    memory = model(_tokens()).memory
    model(_tokens(), torch.arange(15).view(3, 5), memory=memory).nll.mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 1e-9, parameter_name


def test_one_stream_never_changes_anothers() -> None:
    model = _model().eval()
    tokens, targets = _tokens(6), _tokens(6)
    first = model(tokens, targets)
    second = model(tokens, targets, memory=first.memory)
    part = slice(2, 4)
    changed, others = tokens.clone(), targets.clone()
    outside = torch.tensor([0, 1, 4, 5])
    changed[outside], others[outside] = _tokens(4), _tokens(4)
    one = model(changed, others)
    two = model(changed, others, memory=one.memory)
    for before, after in ((first, one), (second, two)):
        torch.testing.assert_close(after.nll[part], before.nll[part])
        torch.testing.assert_close(after.hidden[part], before.hidden[part])
    assert (two.nll[outside] - second.nll[outside]).abs().max() > 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_leaving_stopped_samples_out_gives_the_same(training: bool) -> None:
    config = replace(TINY, dropout=0.3, attention_dropout=0.3)
    plain = _model(config, solver=replace(EXACT, rtol=1e-9)).train(training)
    compact = _model(config, solver=replace(EXACT, rtol=1e-9, compact=True)).train(training)
    compact.load_state_dict(plain.state_dict())
    memory = plain(_tokens(6)).memory
    tokens, hidden = _tokens(6), []
    for model in (plain, compact):
        torch.manual_seed(7)
        hidden.append(model(tokens, memory=memory).hidden)
        _converged(model)
    assert compact.last_solution.evaluations < plain.last_solution.evaluations
    torch.testing.assert_close(*hidden, rtol=1e-6, atol=1e-7)


def test_dropout_masks_are_fixed_within_a_pass_and_new_in_the_next() -> None:
    config = replace(TINY, dropout=0.5, attention_dropout=0.5)
    model = DEQTransformer(config, solver=Anderson(max_steps=6), gradient=Implicit())
    seen: list[list[Tensor]] = []

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        *_, distances, masks, attention_mask = inputs
        seen.append([*(part.detach() for part in distances), *masks, attention_mask])

    model.cell.register_forward_hook(record)
    outer = (model.input_dropout, model.output_dropout, model.cell.position_dropout)
    passes = []
    for _ in range(2):
        seen.clear()
        model(_tokens(), _tokens()).nll.mean().backward()
        assert len(seen) >= 6
        for drawn in seen:
            assert all(torch.equal(x, y) for x, y in zip(drawn, seen[0], strict=True))
        passes.append([*seen[0], *(dropout.mask for dropout in outer)])
    shapes = [(2, 4, 6), (2, 1, 5, 6), (3, 1, 8), (3, 1, 16), (3, 1, 8), (3, 2, 5, 5)]
    assert [tuple(x.shape) for x in passes[0][:6]] == shapes
    assert all(x is not None and not x.equal(y) for x, y in zip(*passes, strict=True))


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"attention_dropout": 0.5}])
def test_masks_given_to_the_cell_are_those_of_its_modules(options: dict[str, float]) -> None:
    model = _model(replace(TINY, **options))
    u = model.inject(model.embedding(_tokens()))
    z = torch.randn(3, 5, 8, dtype=torch.float64)
    with model.cell.one_solve(u, None):
        constants = model.cell.constants(u, None)
        masked = model.cell(z, *constants, *model.cell.masks())
        torch.testing.assert_close(masked, model.cell(z, *constants))
        model.cell.eval()
        assert model.cell.masks() == (None, None)
        assert (masked - model.cell(z, *constants)).abs().max() > 1e-3


def test_evaluation_is_deterministic() -> None:
    model = _model(replace(TINY, dropout=0.5, attention_dropout=0.5)).eval()
    tokens = _tokens()
    before = torch.get_rng_state()
    assert torch.equal(model(tokens).hidden, model(tokens).hidden)
    assert torch.equal(torch.get_rng_state(), before)


def test_log_probabilities_are_those_of_the_loss() -> None:
    model = _model().eval()
    tokens, targets = _tokens(), _tokens()
    output = model(tokens, targets)
    dense = model.log_probabilities(output.hidden)
    assert dense.shape == (3, 5, 20)
    torch.testing.assert_close(output.nll, -dense.gather(2, targets[..., None])[..., 0])


@pytest.mark.parametrize("attention_dropout", [0.0, 0.3])
def test_jacobian_penalty(attention_dropout: float) -> None:
    """Its expectation, and a gradient in every parameter of the cell."""
    model = _model(replace(TINY, attention_dropout=attention_dropout))
    u = model.inject(model.embedding(_tokens(1)))
    z = torch.randn(1, 5, 8, dtype=torch.float64)
    with model.cell.one_solve(u, None):
        constants = model.cell.constants(u, None)
        penalty = jacobian_penalty(lambda z: model.cell(z, *constants), z, probes=150)

        def f(z: Tensor) -> Tensor:
            return model.cell(z.view(1, 5, 8), *constants).flatten()

        jacobian = torch.autograd.functional.jacobian(f, z.flatten())
    assert penalty.item() == pytest.approx(jacobian.square().sum().item() / 40, rel=0.25)
    penalty.backward()
    for name, parameter in model.cell.named_parameters():
        if name != "narrow.bias":
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0.0, name


def test_default_solvers_are_the_published_ones() -> None:
    model = DEQTransformer(TINY)
    assert model.deq.solver == Anderson(max_steps=30, rtol=1e-3)
    assert model.deq.gradient == Implicit(solver=Broyden(max_steps=35, rtol=1e-3))


@pytest.mark.parametrize(
    "gradient", [JacobianFree(), Implicit(solver=Broyden(max_steps=12, rtol=1e-2))]
)
def test_a_few_steps_of_training_lower_the_loss(gradient: Gradient) -> None:
    model = DEQTransformer(TINY, solver=Anderson(max_steps=12), gradient=gradient)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    text = (torch.arange(61) % 6).repeat(4, 1)
    losses = []
    for _ in range(12):
        memory = None
        for start in (0, 5):
            part = slice(start, start + 5)
            output = model(text[:, part], text[:, 1:][:, part], memory=memory)
            memory = output.memory
            optimizer.zero_grad()
            output.nll.mean().backward()
            optimizer.step()
            losses.append(output.nll.mean().item())
    assert losses[-1] < 1.2 < losses[0] / 2


@pytest.mark.parametrize(
    ("tokens", "options", "error", "message"),
    [
        (torch.zeros(2, 5), {}, TypeError, "tokens must be int64 token numbers; got torch.float32"),
        (torch.zeros(5).long(), {}, ValueError, r"must be \[B, T\] .* got tokens \[5\]"),
        (torch.zeros(2, 0).long(), {}, ValueError, r"with T at least 1.* got tokens \[2, 0\]"),
        (
            torch.zeros(2, 5).long(),
            {"targets": torch.zeros(2, 4).long()},
            ValueError,
            r"and alike; got targets \[2, 4\]",
        ),
        (
            torch.zeros(2, 5).long(),
            {"memory": Memory(torch.zeros(3, 5, 8), torch.zeros(3, 5, 24))},
            ValueError,
            r"the memory must be \[2, M, 8\].* got \[3, 5, 8\]",
        ),
        (
            torch.zeros(2, 5).long(),
            {"pretrain_steps": 0},
            ValueError,
            "pretrain_steps must be at least 1, got 0",
        ),
    ],
)
def test_refused_calls(
    tokens: Tensor, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DEQTransformer(TINY)(tokens, **options)


def test_refused_memory() -> None:
    with pytest.raises(ValueError, match=r"got \[2, 5, 8\] and \[2, 5, 16\]"):
        Memory(torch.zeros(2, 5, 8), torch.zeros(2, 5, 16))
