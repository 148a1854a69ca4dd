"""torchdeq's layers with our solvers and gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import deq_kernels as dk
from deq_kernels.integrations import torchdeq as drop_in
from python_tests.integrations.torchdeq_layer import digits_batches, new_model, torchdeq, train

STEPS = 4


@pytest.fixture
def registered() -> Iterator[None]:
    drop_in.register()
    yield
    drop_in.unregister()


def test_registering_and_unregistering() -> None:
    solvers = torchdeq.solver._solvers
    before = dict(solvers)
    drop_in.register()
    drop_in.register()
    for name, function in (drop_in.SAME_SOLVERS | drop_in.OWN_SOLVERS).items():
        assert torchdeq.solver.get_solver(name) is function
    assert solvers["simple_fixed_point_iter"] is before["simple_fixed_point_iter"]
    drop_in.unregister()
    assert solvers == before
    drop_in.unregister()
    assert solvers == before


def test_later_entries_of_others_stay() -> None:
    solvers = torchdeq.solver._solvers
    before = dict(solvers)
    drop_in.register()
    torchdeq.solver.register_solver("anderson", print)
    torchdeq.solver.register_solver("dk_gmres", print)
    drop_in.unregister()
    assert solvers.pop("dk_gmres") is print
    assert solvers["anderson"] is print
    solvers["anderson"] = before["anderson"]
    assert solvers == before


@pytest.mark.parametrize("core", ["indexing", "sliced"])
@pytest.mark.parametrize(
    "options",
    [
        {"f_solver": "broyden", "b_solver": "broyden", "ift": True, "f_tol": 1e-7},
        {"f_solver": "broyden", "f_max_iter": 9, "n_states": 3, "grad": 2, "tau": 0.8},
        {"f_solver": "anderson", "b_solver": "anderson", "ift": True},
        {"f_solver": "fixed_point_iter", "f_max_iter": 12, "n_states": 2, "grad": 1},
        {"f_solver": "fixed_point_iter", "b_solver": "fixed_point_iter", "hook_ift": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_training_gives_the_losses_of_torchdeq(core: str, options: dict[str, Any]) -> None:
    """Some steps on handwritten digits: equal to rounding, which training amplifies."""
    theirs = train(new_model(core=core, **options), STEPS)
    drop_in.register()
    try:
        model = new_model(core=core, **options)
    finally:
        drop_in.unregister()
    assert model.deq.f_solver is drop_in.SAME_SOLVERS[options["f_solver"]]
    ours = train(model, STEPS)
    assert theirs[-1] < 0.9 * theirs[0]
    assert ours == pytest.approx(theirs, rel=1e-7)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("core", ["indexing", "sliced"])
@pytest.mark.parametrize("f_solver", ["broyden", "dk_broyden", "dk_adjoint_broyden"])
def test_shine_in_torchdeq_layers(core: str, f_solver: str) -> None:
    """With a converged forward solve SHINE's gradients are near the exact ones, and train."""
    options = {"core": core, "f_solver": f_solver, "f_max_iter": 30, "f_tol": 1e-8}
    x, label = digits_batches(1)[0]
    gradients = []
    for gradient in (dk.Shine(), dk.Implicit(solver=dk.GMRES(rtol=1e-12)), dk.JacobianFree()):
        model = new_model(**options)
        drop_in.set_gradient(model.deq, gradient)
        torch.nn.functional.cross_entropy(model(x)[0][-1], label).backward()
        gradients.append(model.transition.weight.grad.flatten())
    shine, exact, free = gradients
    assert torch.cosine_similarity(shine, exact, dim=0) > 0.9
    assert (shine - exact).norm() < 0.8 * (free - exact).norm()

    model = new_model(**options)
    drop_in.set_gradient(model.deq, dk.Shine(fallback=1.3))
    losses = train(model, STEPS)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.usefixtures("registered")
def test_implicit_gradient_is_that_of_torchdeq() -> None:
    options = {"core": "sliced", "f_solver": "broyden", "f_tol": 1e-11, "n_states": 2}
    theirs = new_model(ift=True, b_solver="broyden", b_tol=1e-12, b_max_iter=60, **options)
    ours = new_model(**options)
    drop_in.set_gradient(ours.deq, dk.Implicit(solver=dk.GMRES(rtol=1e-13)))
    x, label = digits_batches(1)[0]
    for model in (theirs, ours):
        logits, _ = model(x)
        torch.nn.functional.cross_entropy(logits[-1], label).backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("registered")
def test_the_last_state_is_never_lost() -> None:
    """A solve that meets its tolerance early leaves torchdeq without the states asked for."""
    options = {"core": "indexing", "f_solver": "broyden", "f_max_iter": 40, "indexing": [3]}
    x, _ = digits_batches(1)[0]
    plain, ours = new_model(**options), new_model(**options)
    drop_in.set_gradient(ours.deq, dk.Shine())
    assert len(plain(x)[0]) == 1
    assert len(ours(x)[0]) == 2


@pytest.mark.usefixtures("registered")
def test_states_of_several_tensors() -> None:
    """torchdeq hands them over as one vector per sample."""
    weight = (0.1 * torch.randn(6, 6, dtype=torch.float64)).requires_grad_()
    x = torch.randn(4, 6, dtype=torch.float64)

    def cell(y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tanh(z @ weight.T + x), torch.tanh(y @ weight)

    starts = [torch.zeros_like(x), torch.zeros_like(x)]
    found = []
    for gradient in (dk.Shine(refine=8), None):
        deq = torchdeq.get_deq(f_solver="broyden", b_solver="broyden", ift=True, f_tol=1e-9)
        if gradient is not None:
            drop_in.set_gradient(deq, gradient)
        states, _ = deq(cell, starts)
        y, z = states[-1]
        torch.testing.assert_close(cell(y, z)[0], y, rtol=0.0, atol=1e-8)
        found.append(torch.autograd.grad((y * y + z).sum(), weight)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("registered")
def test_a_layer_keeps_no_inverse_in_evaluation_mode() -> None:
    model = new_model(core="indexing", f_solver="broyden")
    drop_in.set_gradient(model.deq, dk.Shine())
    x, _ = digits_batches(1)[0]
    model.eval()
    (logits,), info = model(x)
    assert logits.shape == (32, 10)
    assert "sradius" in info
    assert model.deq.f_solver.take() is None
    assert copy.deepcopy(model)(x)[0][0].equal(logits)


@pytest.mark.usefixtures("registered")
def test_refused_layers_and_gradients() -> None:
    with pytest.raises(TypeError, match="layer of torchdeq"):
        drop_in.set_gradient(torch.nn.Linear(2, 2), dk.Shine())
    deq = torchdeq.get_deq(f_solver="anderson")
    with pytest.raises(ValueError, match="inverse Jacobian"):
        drop_in.set_gradient(deq, dk.Shine())
    drop_in.set_gradient(deq, dk.JacobianFree())
    with pytest.raises(ValueError, match="yet"):
        drop_in.set_gradient(deq, dk.JacobianFree())
    x, _ = digits_batches(1)[0]
    with pytest.raises(ValueError, match="backward_writer"):
        deq(torch.cos, x, backward_writer=print)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("f_solver", ["broyden", "dk_anderson", "dk_adjoint_broyden"])
@pytest.mark.parametrize(
    "gradient",
    [dk.Implicit(), dk.JacobianFree(), dk.Unrolled(damping=1.0)],
    ids=lambda g: type(g).__name__,
)
def test_what_a_map_keeps_carries_gradients(gradient: dk.Gradient, f_solver: str) -> None:
    """And states may be changed in place."""
    weight = (0.3 * torch.randn(4, 4, dtype=torch.float64)).requires_grad_()
    kept: list[torch.Tensor] = []

    def product() -> torch.Tensor:
        if not kept:
            kept.append(torch.sin(weight))
        return kept[0]

    def weight_gradient(keeps: bool) -> torch.Tensor:
        deq = drop_in.set_gradient(torchdeq.get_deq(f_solver=f_solver, f_tol=1e-9), gradient)
        start = torch.zeros(2, 4, dtype=torch.float64)
        matrix = product if keeps else weight.sin
        states, _ = deq(lambda z: torch.tanh(z @ matrix() + 1.0), start)
        state = states[-1].sub_(0.5).relu_()
        return torch.autograd.grad(state.square().sum(), weight)[0]

    torch.testing.assert_close(weight_gradient(keeps=True), weight_gradient(keeps=False))
    assert kept
