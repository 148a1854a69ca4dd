"""A diagnosis against dense algebra, and that it leaves no trace."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deq_kernels as dk
import deq_kernels.gradients
from deq_kernels.diagnostics import Diagnosis, default_estimators, diagnose
from deq_kernels.nn import one_solve, spectral_norm, weight_norm
from python_tests.problems import matrix_of_norm

TIGHT = dk.Broyden(max_steps=120, rtol=1e-12, stall_steps=None)


class TanhCell(nn.Module):
    """z = tanh(W z + U x)."""

    def __init__(self, dim: int = 10, norm: float = 0.8) -> None:
        super().__init__()
        self.weight = nn.Parameter(matrix_of_norm(dim, norm))
        self.inject = nn.Parameter(torch.randn(dim, 3, dtype=torch.float64))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight.T + x @ self.inject.T)

    def slopes(self, z: Tensor, x: Tensor) -> Tensor:
        """tanh' at each entry."""
        return 1.0 - self(z, x).detach() ** 2


def _layer(gradient: dk.Gradient | None = None, **options: Any) -> dk.DEQ:
    return dk.DEQ(TanhCell(**options), solver=TIGHT, gradient=gradient)


def _problem(batch: int = 3, dim: int = 10) -> tuple[Tensor, Tensor]:
    return torch.zeros(batch, dim).double(), torch.randn(batch, 3).double()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def _rows(diagnosis: Diagnosis) -> dict[str, Any]:
    return {row.name.partition("(")[0]: row for row in diagnosis.estimators}


def test_against_dense_algebra() -> None:
    """Every number of the estimators with a closed form, for a loss of two entries of z*."""
    layer = _layer()
    z0, x = _problem()
    weights = torch.randn(10, dtype=torch.float64)
    neumann, unrolled = dk.Neumann(steps=4, damping=0.7), dk.Unrolled(steps=4, damping=0.7)
    diagnosis = diagnose(
        layer,
        z0,
        x,
        loss=lambda z: (z @ weights).square().mean(),
        estimators={
            "free": dk.JacobianFree(),
            "neumann": neumann,
            "unrolled": unrolled,
            "shine": dk.Shine(),
            "implicit": dk.Implicit(solver=TIGHT),
        },
    )
    cell = layer.cell
    solution = TIGHT(lambda z: cell(z, x), z0)
    z = solution.z
    jacobian = cell.slopes(z, x)[:, :, None] * cell.weight.detach()
    cotangent = 2 * (z @ weights)[:, None] * weights / 3
    eye = torch.eye(10, dtype=torch.float64)
    exact = torch.linalg.solve(eye - jacobian.mT, cotangent[:, :, None])[:, :, 0]

    def transposed(w: Tensor) -> Tensor:
        return torch.einsum("bij,bi->bj", jacobian, w)

    def parameters(w: Tensor) -> Tensor:
        pre = cell.slopes(z, x) * w
        return torch.cat(((pre.T @ z).flatten(), (pre.T @ x).flatten()))

    series = torch.zeros_like(cotangent)
    for _ in range(4):
        series = 0.7 * (cotangent + transposed(series)) + 0.3 * series
    expected = {
        "free": (cotangent, 0, 1),
        "neumann": (series, 3, 1),
        "unrolled": (series, 3, 4),
        "shine": (-solution.inverse_jacobian.rmatvec(cotangent), 0, 1),
        "implicit": (exact, None, 1),
    }
    assert [row.name for row in diagnosis.estimators] == list(expected)
    for row in diagnosis.estimators:
        w, vjps, evaluations = expected[row.name]
        assert row.adjoint_cosine == pytest.approx(_cosine(w, exact).tolist(), abs=1e-7)
        ratio = w.norm(dim=1) / exact.norm(dim=1)
        assert row.adjoint_norm_ratio == pytest.approx(ratio.tolist(), abs=1e-7)
        left = (cotangent + transposed(w) - w).norm(dim=1) / cotangent.norm(dim=1)
        assert row.adjoint_residual == pytest.approx(left.tolist(), abs=1e-7)
        cosine = _cosine(parameters(w), parameters(exact)).item()
        assert row.parameter_cosine == pytest.approx(cosine, abs=1e-7)
        ratio = parameters(w).norm() / parameters(exact).norm()
        assert row.parameter_norm_ratio == pytest.approx(ratio.item(), abs=1e-7)
        assert row.evaluations == evaluations
        assert row.vjps == vjps or (vjps is None and 5 < row.vjps < 40)
    assert max(diagnosis.exact.adjoint_residual) < 1e-9
    assert diagnosis.exact.parameter_cosine == pytest.approx(1.0)

    radius = torch.linalg.eigvals(jacobian).abs().amax(1)
    assert diagnosis.jacobian.spectral_radius == pytest.approx(radius.tolist(), rel=0.05)
    assert (diagnosis.batch, diagnosis.dim, diagnosis.dtype) == (3, 10, "float64")
    assert diagnosis.parameters == 130


def test_the_forward_solve() -> None:
    z0, x = _problem()
    z0 = z0 + 0.5
    layer = dk.DEQ(
        TanhCell(), solver=TIGHT, eval_solver=dk.FixedPoint(max_steps=9, rtol=1e-3)
    ).eval()
    forward = diagnose(layer, z0, x, estimators={}).forward
    solution = layer.eval_solver(lambda z: layer.cell(z, x), z0)
    assert forward.solver == "FixedPoint(max_steps=9, rtol=0.001)"
    assert forward.status == tuple(dk.Status(s).name.lower() for s in solution.status.tolist())
    assert forward.steps == tuple(solution.steps.tolist())
    assert forward.residual == tuple(solution.residual.tolist())
    assert [len(trace) for trace in forward.trace] == solution.steps.tolist()
    assert forward.trace[0] == tuple(solution.trace[0, : forward.steps[0]].tolist())
    assert forward.distance == pytest.approx((solution.z - z0).norm(dim=1).tolist())
    assert forward.norm == pytest.approx(solution.z.norm(dim=1).tolist())
    for reduction, residual, trace, steps in zip(
        forward.reduction, forward.residual, forward.trace, forward.steps, strict=True
    ):
        assert reduction ** (steps - 1) == pytest.approx(residual / trace[0])


def test_every_estimator_of_the_package_is_there_by_default() -> None:
    layer = _layer(dk.Shine(fallback=1.3))
    names = {row.name for row in diagnose(layer, *_problem()).estimators}
    kinds = [
        name
        for name in deq_kernels.gradients.__all__
        if isinstance(kind := getattr(deq_kernels.gradients, name), type)
        and issubclass(kind, dk.Gradient)
        and not getattr(kind, "__abstractmethods__", None)
    ]
    assert len(kinds) >= 5
    for kind in kinds:
        assert any(name.partition("(")[0] == kind for name in names), kind
    assert "Shine(fallback=1.3), the layer's" in names


def test_the_layer_s_own_gradient_appears_once() -> None:
    assert len(default_estimators(dk.JacobianFree())) == len(default_estimators())
    first = next(iter(default_estimators(dk.Neumann(steps=9))))
    assert first == "Neumann(steps=9, damping=0.5), the layer's"


def test_the_layer_s_callback_hears_nothing() -> None:
    def hear(solution: dk.Solution) -> None:
        raise AssertionError("this backward pass is not the owner's")

    diagnose(_layer(dk.Implicit(on_solve=hear)), *_problem())


def test_an_estimator_that_needs_an_inverse_is_left_out_with_a_reason() -> None:
    layer = dk.DEQ(TanhCell(), solver=dk.FixedPoint(max_steps=90, rtol=1e-9))
    diagnosis = diagnose(layer, *_problem())
    row = _rows(diagnosis)["Shine"]
    assert row.skipped == "FixedPoint builds no inverse"
    assert row.adjoint_cosine == ()
    assert "Shine: not measured: FixedPoint builds no inverse" in str(diagnosis)


class Restless(nn.Module):
    """A cell that changes everything an evaluation can change."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = spectral_norm(nn.Linear(4, 4), bound=0.5)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", None)
        self.note = "none"

    def forward(self, z: Tensor, x: Tensor, *, fail_after: int = 10**9) -> Tensor:
        self.calls += 1
        self.last = z.detach().clone()
        self.note = "evaluated"
        torch.rand(())
        if self.calls > fail_after:
            raise KeyError("the cell failed")
        self.norm(z.detach())
        return torch.tanh(self.linear(z) + x)


def _state(layer: dk.DEQ) -> list[Any]:
    tensors = [*layer.parameters(), *layer.buffers()]
    return [
        [tensor.detach().clone() for tensor in tensors],
        [None if p.grad is None else p.grad.clone() for p in layer.parameters()],
        [module.training for module in layer.modules()],
        [parameter.requires_grad for parameter in layer.parameters()],
        torch.get_rng_state(),
        layer.cell.note,
        layer.cell.last,
        list(layer.state_dict()),
    ]


def _assert_same(before: Any, after: Any) -> None:
    if isinstance(before, Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, list):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            _assert_same(one, other)
    else:
        assert before == after


@pytest.mark.parametrize("fail_after", [10**9, 2, 9])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes(training: bool, fail_after: int) -> None:
    layer = dk.DEQ(Restless(), solver=dk.Broyden(max_steps=12), warm_start=True)
    x, z0 = torch.randn(3, 4), torch.zeros(3, 4)
    layer(z0, x).sum().backward()
    layer.train(training)
    layer.cell.calls.zero_()
    layer.cell.last, layer.cell.note = None, "none"
    last = layer.last_solution
    held = [(tensor, tensor._version) for tensor in layer.parameters()]
    before = _state(layer)

    options: dict[str, Any] = {"kwargs": {"fail_after": fail_after}}
    if fail_after < 10**9:
        with pytest.raises(KeyError, match="the cell failed"):
            diagnose(layer, z0, x, **options)
    else:
        diagnose(layer, z0, x, float64=True, **options)

    _assert_same(before, _state(layer))
    assert layer.last_solution is last
    for (tensor, version), now in zip(held, layer.parameters(), strict=True):
        assert tensor is now
        assert tensor._version == version
    assert x.grad is None


def test_a_pending_backward_pass_still_works() -> None:
    layer = _layer()
    z0, x = _problem()
    z = layer(z0, x)
    diagnose(layer, z0, x)
    z.sum().backward()
    kept = layer.cell.weight.grad.clone()
    layer.zero_grad()
    layer(z0, x).sum().backward()
    assert torch.equal(layer.cell.weight.grad, kept)


def test_it_is_repeatable() -> None:
    layer = _layer()
    problem = _problem()
    first = diagnose(layer, *problem)
    torch.manual_seed(77)
    assert diagnose(layer, *problem) == first
    assert diagnose(layer, *problem, seed=1) != first


def test_other_samples_do_not_matter() -> None:
    layer = _layer()
    z0, x = _problem()
    first = diagnose(layer, z0, x)
    x[1] = 5.0
    second = diagnose(layer, z0, x)
    for sample in (0, 2):
        assert first.forward.steps[sample] == second.forward.steps[sample]
        assert first.jacobian.spectral_radius[sample] == second.jacobian.spectral_radius[sample]
        for one, other in zip(first.estimators, second.estimators, strict=True):
            assert one.adjoint_cosine[sample] == other.adjoint_cosine[sample]
            assert one.adjoint_residual[sample] == other.adjoint_residual[sample]
    assert first.jacobian.spectral_radius[1] != second.jacobian.spectral_radius[1]


def _float32_layer(make: Any) -> tuple[dk.DEQ, Tensor, Tensor]:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = make(nn.Linear(8, 8))
            # Spectral norm's vectors are stale now, so that one more step changes the weight.
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.3)

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(0.7 * self.linear(z) + x)

    layer = dk.DEQ(Cell(), solver=dk.Broyden(max_steps=40, rtol=1e-6))
    return layer, torch.zeros(3, 8), torch.randn(3, 8)


@pytest.mark.parametrize("make", [lambda linear: linear, weight_norm, spectral_norm])
@pytest.mark.parametrize("inside", [True, False])
def test_a_reference_in_float64(make: Any, inside: bool) -> None:
    """It is exact beyond float32, and of the same map: also of weights that are being cached."""
    layer, z0, x = _float32_layer(make)
    estimators = {"tight": dk.Implicit(solver=dk.Broyden(max_steps=60, rtol=1e-6))}

    def run() -> Diagnosis:
        return diagnose(layer, z0, x, float64=True, estimators=estimators)

    if inside:
        with one_solve(layer):
            diagnosis = run()
    else:
        diagnosis = run()
    assert max(diagnosis.exact.adjoint_residual) < 1e-10
    assert diagnosis.exact.name == "Implicit in float64"
    (row,) = diagnosis.estimators
    assert 1e-10 < max(row.adjoint_residual) < 1e-5
    assert row.parameter_cosine == pytest.approx(1.0, abs=1e-6)
    assert row.parameter_norm_ratio == pytest.approx(1.0, abs=1e-5)
    assert min(row.adjoint_cosine) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_against_float64(dtype: torch.dtype) -> None:
    layer, z0, x = _float32_layer(lambda linear: linear)
    layer.to(dtype)
    diagnosis = diagnose(layer, z0.to(dtype), x.to(dtype), float64=True)
    assert diagnosis.dtype == str(dtype).removeprefix("torch.")
    assert max(diagnosis.exact.adjoint_residual) < 1e-10
    row = _rows(diagnosis)["Implicit"]
    assert min(row.adjoint_cosine) > 0.99
    assert row.parameter_cosine > 0.99


def test_under_autocast() -> None:
    layer, z0, x = _float32_layer(lambda linear: linear)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        diagnosis = diagnose(layer, z0, x, float64=True)
    assert max(diagnosis.exact.adjoint_residual) < 1e-10
    assert _rows(diagnosis)["Implicit"].parameter_cosine > 0.99


def test_an_expansive_map_has_an_exact_reference() -> None:
    layer = _layer(norm=3.0, dim=40)
    z0, x = _problem(batch=4, dim=40)
    diagnosis = diagnose(layer, z0, x)
    assert max(diagnosis.jacobian.spectral_radius) > 1
    assert max(diagnosis.exact.adjoint_residual) < 1e-8


def test_a_reference_that_is_not_exact_is_called_so() -> None:
    layer = _layer()
    problem = _problem()
    assert "NOT EXACT" not in str(diagnose(layer, *problem))
    diagnosis = diagnose(layer, *problem, exact=dk.JacobianFree())
    assert "THE REFERENCE IS NOT EXACT: residual above 0.001 for 3 sample(s)" in str(diagnosis)
    assert diagnosis.exact.name == "JacobianFree"


def test_a_sample_without_loss_is_solved_and_has_no_direction() -> None:
    diagnosis = diagnose(_layer(), *_problem(), loss=lambda z: z[1:].sum())
    assert diagnosis.exact.adjoint_residual[0] == 0.0
    assert "NOT EXACT" not in str(diagnosis)
    row = _rows(diagnosis)["JacobianFree"]
    assert [cosine != cosine for cosine in row.adjoint_cosine] == [True, False, False]


def test_tuples_as_states() -> None:
    cell = TanhCell()

    def pair(state: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        out = cell(torch.cat((state[0].flatten(1), state[1]), dim=1), x)
        return out[:, :4].reshape(-1, 2, 2), out[:, 4:]

    z0, x = _problem()
    whole = diagnose(dk.DEQ(cell, solver=TIGHT), z0, x)
    parts = diagnose(
        dk.DEQ(pair, solver=TIGHT),
        (z0[:, :4].reshape(3, 2, 2), z0[:, 4:]),
        x,
        parameters=cell.parameters(),
    )
    assert parts == whole


def test_a_closure_without_parameters() -> None:
    weight = matrix_of_norm(5, 0.8)
    layer = dk.DEQ(lambda z, *, x: torch.tanh(z @ weight.T + x), solver=TIGHT)
    z0 = torch.zeros(2, 5, dtype=torch.float64)
    diagnosis = diagnose(layer, z0, kwargs={"x": torch.ones_like(z0)})
    assert diagnosis.parameters == 0
    row = _rows(diagnosis)["Implicit"]
    assert row.parameter_cosine is None
    assert min(row.adjoint_cosine) > 0.999
    assert str(diagnosis)


def test_a_cell_that_ignores_z() -> None:
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    layer = dk.DEQ(lambda z: weight * torch.ones_like(z), solver=TIGHT)
    with pytest.warns(dk.DetachedStateWarning):
        diagnosis = diagnose(layer, torch.zeros(2, 4, dtype=torch.float64), parameters=[weight])
    assert diagnosis.jacobian.spectral_radius == (0.0, 0.0)
    for row in diagnosis.estimators:
        if row.name.startswith(("Neumann", "Unrolled")):
            continue  # damped, and so not exact
        assert row.adjoint_cosine == pytest.approx((1.0, 1.0))
        assert row.parameter_norm_ratio == pytest.approx(1.0)


def test_an_empty_batch() -> None:
    diagnosis = diagnose(_layer(), *_problem(batch=0))
    assert diagnosis.forward.steps == ()
    assert str(diagnosis) == "DEQ on 0 sample(s), d = 10, float64, 130 parameter(s)"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_autograd_is_off(mode: Any) -> None:
    layer, problem = _layer(), _problem()
    expected = diagnose(layer, *problem)
    with mode():
        assert diagnose(layer, *problem) == expected


def test_text_and_plain_values() -> None:
    layer = _layer()
    diagnosis = diagnose(layer, *_problem())
    text = str(diagnosis)
    assert text.startswith("DEQ on 3 sample(s), d = 10, float64, 130 parameter(s)\n")
    for part in ("3 converged; steps", "spectral radius 0.", "JacobianFree", "‖z* − z0‖", "VJPs"):
        assert part in text
    assert all(len(line) < 130 for line in text.splitlines()[3:])
    assert json.loads(json.dumps(diagnosis.as_dict()))["forward"]["status"] == ["converged"] * 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": lambda z: z.sum(1)}, ValueError, r"loss must return a scalar; got shape \[3\]"),
        ({"loss": lambda z: torch.ones(())}, ValueError, "loss must depend on the state"),
        ({"parameters": [torch.ones(2)]}, ValueError, "parameters must all require grad"),
        (
            {"parameters": [torch.ones(2, requires_grad=True)], "float64": True},
            ValueError,
            "parameters must be the cell's own",
        ),
        ({"power_steps": 0}, ValueError, "max_steps must be a whole number"),
        ({"estimator": {}}, TypeError, "unexpected keyword argument"),
    ],
)
def test_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        diagnose(_layer(), *_problem(), **options)


def test_only_layers_and_only_modules_in_float64() -> None:
    with pytest.raises(TypeError, match=r"layer must be a deq_kernels\.DEQ; got Linear"):
        diagnose(nn.Linear(2, 2), torch.zeros(1, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float64=True needs a cell that is a"):
        diagnose(dk.DEQ(torch.cos), torch.zeros(1, 2), float64=True)
