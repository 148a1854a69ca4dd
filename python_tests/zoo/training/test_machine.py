"""Number formats and compilation: the same training, computed otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partialmethod

import pytest
import torch
from torch import Tensor, nn
from torch._functorch import config as backward_options

import deq_kernels as dk
from deq_zoo.compilation import KEPT_BUFFERS, compile_cell
from deq_zoo.config import TrainingConfig
from deq_zoo.jacobian import JacobianRegularisation
from deq_zoo.loop import Trainer
from python_tests.zoo.training.runs import builder, small_config


def _first_epoch(**machine: object) -> tuple[Trainer, float]:
    settings = {f"machine__{name}": value for name, value in machine.items()}
    config = small_config(training__epochs=2, **settings)
    torch.manual_seed(0)
    trainer = Trainer(builder()(config), config)
    return trainer, trainer.run_epoch().train.loss


def test_number_formats() -> None:
    single, expected = _first_epoch()
    double, exact = _first_epoch(dtype="float64")
    half, rough = _first_epoch(dtype="bfloat16")
    assert exact == pytest.approx(expected, rel=1e-3)
    assert rough != expected
    assert rough == pytest.approx(expected, rel=0.1)
    for trainer, dtype in ((single, torch.float32), (double, torch.float64), (half, torch.float32)):
        assert {p.dtype for p in trainer.task.model.parameters()} == {dtype}


class Cell(nn.Module):
    """f(z, x) = tanh(W z) + x."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.5 * torch.tanh(self.linear(z)) + x


def test_a_compiled_cell_is_still_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile(self: nn.Module, *, dynamic: bool | None) -> None:
        compiled.append((self, dynamic))

    monkeypatch.setattr(nn.Module, "compile", compile)
    layer = dk.DEQ(Cell())
    names = list(layer.state_dict())
    compile_cell(layer)
    assert compiled == [(layer.cell, False)]
    assert list(layer.state_dict()) == names
    trainer, _ = _first_epoch(compile=True)
    assert compiled[1:] == [(trainer.task.layer.cell, False)]  # type: ignore[union-attr]
    compile_cell(dk.DEQ(Cell(), solver=dk.Broyden(compact=True), per_sample=(0,)))
    assert compiled[-1][1] is None


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fast compiler with torch's own options, restored afterwards."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    with (
        backward_options.patch(donated_buffer=True),
        torch.compiler.config.patch(cache_key_tag="mine"),
    ):
        yield
    torch.compiler.reset()


# torch.compile looks at the .grad of what it is given, and would be stopped by its own warning.
looks_at_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@looks_at_grad
@pytest.mark.usefixtures("compiler")
def test_a_compiled_cell_is_differentiated_again_and_again() -> None:
    """By a solve for the adjoint, for batches of several sizes; torch's own default refuses it."""
    solver = dk.Broyden(max_steps=30, rtol=1e-6)
    compact = dk.Broyden(max_steps=30, rtol=1e-6, compact=True)
    gradient = dk.Implicit(solver=solver)
    layer = dk.DEQ(Cell(), solver=compact, gradient=gradient, per_sample=(0,))

    def gradients(batch: int) -> list[Tensor]:
        x = torch.ones(batch, 3)
        loss = layer(torch.zeros_like(x), x).square().sum()
        return list(torch.autograd.grad(loss, list(layer.parameters())))

    expected = [gradients(batch) for batch in (4, 7)]
    compile_cell(layer)
    for batch, plain in zip((4, 7), expected, strict=True):
        torch.testing.assert_close(gradients(batch), plain)
    # Code that overwrites its buffers may be in torch's caches, under the key without the mark.
    compile_cell(layer)
    assert torch.compiler.config.cache_key_tag == "mine" + KEPT_BUFFERS


@looks_at_grad
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("pretraining_steps", [0, 1])
def test_the_penalty_of_a_compiled_cell(pretraining_steps: int) -> None:
    """It is differentiated twice, which nothing compiled can be."""
    layer = dk.DEQ(Cell(), solver=dk.Broyden(max_steps=30, rtol=1e-6), gradient=dk.JacobianFree())
    config = TrainingConfig(
        jacobian_weight=0.5,
        pretraining_steps=pretraining_steps,
        pretraining_jacobian_weight=0.5 * pretraining_steps,
    )
    x, z = torch.ones(4, 3), torch.full((4, 3), 0.5)

    def gradients(*, compiled: bool) -> list[Tensor]:
        torch.manual_seed(0)
        regularisation = JacobianRegularisation(layer, config, compiled=compiled)
        with regularisation.one_step(0, 0, torch.Generator()) as penalty:
            y = layer.cell(z, x) if pretraining_steps else layer(z, x)
            value = penalty.value(None if pretraining_steps else y.detach())
        assert value is not None
        return list(torch.autograd.grad(y.sum() + value, list(layer.parameters())))

    expected = gradients(compiled=False)
    compile_cell(layer)
    for one, other in zip(gradients(compiled=True), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_cells_that_cannot_be_compiled() -> None:
    for layer in (None, dk.DEQ(lambda z, x: 0.5 * z + x)):
        with pytest.raises(ValueError, match=r"machine\.compile needs a model with a DEQ layer"):
            compile_cell(layer)
