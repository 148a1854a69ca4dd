"""The solvers of locuslab's repositories against their formulas, in dense algebra per sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.integrations.locuslab import deq, mdeq, shine
from python_tests.problems import DenseBroyden, Gate

BATCH, CHANNELS, LENGTH = 3, 4, 5
DIM = CHANNELS * LENGTH


class Cell:
    """f(z) = tanh(W z + b) on states [B, channels, length]."""

    def __init__(self, norm: float = 0.8) -> None:
        weight = torch.randn(DIM, DIM, dtype=torch.float64)
        self.weight = weight * (norm / torch.linalg.matrix_norm(weight, 2))
        self.bias = torch.randn(BATCH, DIM, dtype=torch.float64)
        self.calls = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(z.reshape(BATCH, DIM) @ self.weight.T + self.bias).view_as(z)

    def root(self, z: Tensor) -> Tensor:
        return self(z) - z

    def dense(self, steps: int) -> tuple[Tensor, Tensor]:
        """Iterates and residuals of Broyden's method from 0, [steps + 1, B, dim]."""
        runs = [
            DenseBroyden.run(
                lambda z, b=b: torch.tanh(self.weight @ z + self.bias[b]),  # type: ignore[misc]
                torch.zeros(DIM, dtype=torch.float64),
                steps,
            )
            for b in range(BATCH)
        ]
        return (
            torch.stack([torch.stack(run.iterates) for run in runs], dim=1),
            torch.stack([torch.stack(run.residuals) for run in runs], dim=1),
        )


def root_form(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda z: f(z) - z


def zeros() -> Tensor:
    return torch.zeros(BATCH, CHANNELS, LENGTH, dtype=torch.float64)


@pytest.mark.parametrize("stop_mode", ["abs", "rel"])
@pytest.mark.parametrize(("threshold", "eps"), [(8, 1e-12), (30, 1e-4)])
def test_deq_broyden(stop_mode: str, threshold: int, eps: float) -> None:
    cell = Cell()
    out = deq.broyden(cell, zeros(), threshold, eps=eps, stop_mode=stop_mode, name="forward")
    z, r = cell.dense(12)
    absolute = r.flatten(1).norm(dim=1)
    relative = absolute / ((r + z).flatten(1).norm(dim=1) + 1e-9)
    objective = (absolute if stop_mode == "abs" else relative)[1:]
    below = (objective < eps).nonzero()
    taken = min(threshold, int(below[0]) + 1 if len(below) else threshold)
    best = int(objective[:taken].argmin()) + 1
    assert cell.calls == taken + 1
    assert list(out) == [
        *("result", "lowest", "nstep", "prot_break", "abs_trace", "rel_trace", "eps", "threshold")
    ]
    assert out["nstep"] == best
    assert out["lowest"] == pytest.approx(objective[best - 1].item(), rel=1e-5)
    assert (out["prot_break"], out["eps"], out["threshold"]) == (False, eps, threshold)
    torch.testing.assert_close(out["result"], z[best].view_as(zeros()), rtol=1e-8, atol=1e-10)
    for trace, expected in ((out["abs_trace"], absolute), (out["rel_trace"], relative)):
        assert len(trace) == threshold + 1
        assert trace[:taken] == pytest.approx(expected[1 : taken + 1].tolist(), rel=1e-5)
        assert set(trace[taken:]) == {min(trace[:taken])}


def test_deq_protective_break() -> None:
    calls = 0

    def growing(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return z + 100.0 ** min(calls, 60)

    out = deq.broyden(growing, zeros(), 40, stop_mode="abs")
    assert out["prot_break"]
    assert calls < 20
    assert out["nstep"] == 1


def test_a_sample_at_a_residual_of_zero_goes_on() -> None:
    """As another sample may move it; their formulas divide by the length of that step."""
    z0, iterates = torch.zeros(2, 3, dtype=torch.float64), Gate().broyden(12)
    expected = [(Gate()(z) - z).norm().item() for z in iterates]
    out = deq.broyden(Gate(), z0, 12, eps=1e-9, stop_mode="abs")
    assert out["abs_trace"][:12] == pytest.approx(expected[1:], rel=1e-9)
    for package in (mdeq, shine):
        out = package.broyden(root_form(Gate()), z0, 12, eps=1e-9)
        assert out["trace"] == pytest.approx(expected, rel=1e-9)
        best = iterates[out["lowest_step"]]
        torch.testing.assert_close(out["result"], best, rtol=1e-9, atol=1e-9)


def naive_anderson(
    cell: Cell, m: int, lam: float, beta: float, evaluations: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The bordered system of every step, solved densely."""
    x = [torch.zeros(BATCH, DIM, dtype=torch.float64)]
    f = [cell(x[0])]
    for k in range(1, evaluations):
        if k == 1:
            x.append(f[0])
        else:
            kept = range(max(0, k - m), k)
            new = torch.empty_like(x[0])
            for b in range(BATCH):
                g = torch.stack([f[i][b] - x[i][b] for i in kept])
                n = len(g)
                system = torch.ones(n + 1, n + 1, dtype=torch.float64)
                system[0, 0] = 0.0
                system[1:, 1:] = g @ g.T + lam * torch.eye(n, dtype=torch.float64)
                right = torch.zeros(n + 1, dtype=torch.float64)
                right[0] = 1.0
                a = torch.linalg.solve(system, right)[1:]
                new[b] = beta * (a @ torch.stack([f[i][b] for i in kept]))
                new[b] += (1 - beta) * (a @ torch.stack([x[i][b] for i in kept]))
            x.append(new)
        f.append(cell(x[-1]))
    return x, f


@pytest.mark.parametrize("stop_mode", ["abs", "rel"])
@pytest.mark.parametrize(("m", "lam", "beta"), [(6, 1e-4, 1.0), (3, 1e-6, 0.7)])
def test_deq_anderson(stop_mode: str, m: int, lam: float, beta: float) -> None:
    cell = Cell()
    out = deq.anderson(cell, zeros(), m, lam, 14, 1e-5, stop_mode=stop_mode, beta=beta)
    calls = cell.calls
    x, f = naive_anderson(cell, m, lam, beta, 14)
    absolute = torch.stack([(b - a).norm() for a, b in zip(x, f, strict=True)])
    relative = absolute / (1e-5 + torch.stack([b.norm() for b in f]))
    objective = absolute if stop_mode == "abs" else relative
    below = (objective[2:] < 1e-5).nonzero()
    last = int(below[0]) + 2 if len(below) else 13
    best = int(objective[2 : last + 1].argmin()) + 2
    assert calls == last + 1
    assert out["nstep"] == best
    assert out["lowest"] == pytest.approx(objective[best].item(), rel=1e-5)
    torch.testing.assert_close(out["result"].flatten(1), x[best], rtol=1e-8, atol=1e-10)
    assert len(out["abs_trace"]) == len(out["rel_trace"]) == 12
    assert out["abs_trace"][: last - 1] == pytest.approx(absolute[2 : last + 1].tolist(), rel=1e-5)
    assert out["rel_trace"][: last - 1] == pytest.approx(relative[2 : last + 1].tolist(), rel=1e-5)


MDEQ_KEYS = [
    *("result", "nstep", "tnstep", "lowest_step", "diff", "diff_detail", "prot_break", "trace"),
    *("new_trace", "eps", "threshold"),
]


@pytest.mark.parametrize("solver", [mdeq.broyden, shine.broyden])
@pytest.mark.parametrize(("threshold", "eps"), [(8, 1e-12), (30, 1e-4), (5, 1e3)])
def test_mdeq_broyden(solver: Callable[..., Any], threshold: int, eps: float) -> None:
    cell = Cell()
    out = solver(cell.root, zeros(), threshold=threshold, eps=eps, name="forward")
    calls = cell.calls
    z, r = cell.dense(12)
    objective = r.flatten(1).norm(dim=1)
    below = (objective < eps).nonzero()
    taken = min(threshold, int(below[0]) if len(below) else threshold)
    best = int(objective[: taken + 1].argmin())
    assert calls == taken + 1
    assert list(out)[: len(MDEQ_KEYS)] == MDEQ_KEYS
    assert (out["nstep"], out["tnstep"], out["lowest_step"]) == (taken, taken, best)
    torch.testing.assert_close(out["result"], z[best].view_as(zeros()), rtol=1e-8, atol=1e-10)
    detail = r[best].view_as(zeros()).norm(dim=1)
    assert out["diff"] == pytest.approx(objective[best].item(), rel=1e-5)
    torch.testing.assert_close(out["diff_detail"], detail, rtol=1e-5, atol=1e-12)
    assert out["trace"] == pytest.approx(objective[: taken + 1].tolist(), rel=1e-5)
    assert out["new_trace"][0] == -1
    for k in range(2, taken + 1):
        change = (z[k] - z[k - 1]).norm() / z[k - 1].norm()
        assert out["new_trace"][k] == pytest.approx(change.item(), rel=1e-5)
    assert not mdeq.analyze_broyden(out) or taken == threshold


def test_shine_fork_gives_the_inverse() -> None:
    """−rmatvec(Us, VTs, ℓ), as the fork calls it, is SHINE's w; the first k pairs are H after k."""
    cell = Cell()
    out = shine.broyden(cell.root, zeros(), threshold=12, eps=1e-8)
    taken = out["nstep"]
    assert out["Us"].shape == (BATCH, CHANNELS, LENGTH, 12)
    assert out["VTs"].shape == (BATCH, 12, CHANNELS, LENGTH)
    cotangent = torch.randn_like(zeros())
    solution = dk.Broyden(max_steps=taken + 1, rtol=0.0, atol=0.0, stall_steps=None)(cell, zeros())
    assert solution.inverse_jacobian is not None
    expected = -solution.inverse_jacobian.rmatvec(cotangent.flatten(1)).view_as(cotangent)
    w = -shine.rmatvec(out["Us"], out["VTs"], cotangent)
    torch.testing.assert_close(w, expected, rtol=1e-6, atol=1e-8)
    for k in (0, 1, taken):
        runs = [
            DenseBroyden.run(
                lambda z, b=b: torch.tanh(cell.weight @ z + cell.bias[b]),  # type: ignore[misc]
                torch.zeros(DIM, dtype=torch.float64),
                k,
            )
            for b in range(BATCH)
        ]
        dense = torch.stack([run.inverse for run in runs])
        us, vts = out["Us"][..., :k], out["VTs"][:, :k]
        flat = cotangent.flatten(1)
        for product, matrix in ((shine.matvec, dense), (shine.rmatvec, dense.mT)):
            mine = product(us, vts, cotangent).flatten(1)
            torch.testing.assert_close(
                mine, (matrix @ flat[..., None])[..., 0], rtol=1e-6, atol=1e-7
            )


@pytest.mark.parametrize("opa", [False, True])
def test_shine_fork_adjoint_broyden(opa: bool) -> None:
    cell = Cell()
    options: dict[str, Any] = {}
    if opa:
        options = {"inverse_direction_fun": lambda z: 2 * z, "inverse_direction_freq": 3}
    out = shine.adj_broyden(cell.root, zeros(), threshold=25, eps=1e-8, **options)
    assert list(out)[: len(MDEQ_KEYS)] == MDEQ_KEYS
    assert cell.root(out["result"]).norm() < 1e-8
    assert out["diff"] == pytest.approx(cell.root(out["result"]).norm().item())
    assert len(out["trace"]) == len(out["new_trace"]) == out["nstep"] + 1
    assert not out["prot_break"]
    x = torch.randn_like(zeros())
    product = out["inverse_jacobian"].rmatvec(x.flatten(1)).view_as(x)
    torch.testing.assert_close(shine.rmatvec(out["Us"], out["VTs"], x), product)
    with pytest.raises(ValueError, match="line search"):
        shine.adj_broyden(cell.root, zeros(), 5, 1e-3, ls=True)
    with pytest.raises(ValueError, match="adj_type"):
        shine.adj_broyden(cell.root, zeros(), 5, 1e-3, adj_type="B")


def test_phantom_gradient_loop() -> None:
    """Steps h ← (1 − λ) h + λ f(h) from the solution of `mdeq.broyden`, as phantom_grad does."""
    cell = Cell()
    out = mdeq.broyden(cell.root, zeros(), threshold=20, eps=1e-9)
    cell.weight.requires_grad_()
    h = out["result"]
    for _ in range(5):
        h = 0.5 * h + 0.5 * cell(h)
    (mine,) = torch.autograd.grad(h.square().sum(), cell.weight)
    layer = dk.DEQ(cell, solver=dk.Broyden(rtol=1e-11), gradient=dk.Unrolled(steps=5, damping=0.5))
    z = layer(zeros())
    assert isinstance(z, Tensor)
    (theirs,) = torch.autograd.grad(z.square().sum(), cell.weight)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_what_is_not_finite_costs_steps_and_not_the_batch() -> None:
    for solve in (
        lambda f: deq.broyden(f, zeros(), 40, eps=1e-7),
        lambda f: deq.anderson(f, zeros(), threshold=40, eps=1e-7),
        lambda f: mdeq.broyden(root_form(f), zeros(), 40, 1e-7),
    ):
        cell = Cell()

        def faulty(z: Tensor, cell: Cell = cell) -> Tensor:
            f_z = cell(z)
            if cell.calls >= 4:
                f_z[1] = torch.inf
            return f_z

        z = solve(faulty)["result"]
        assert z.isfinite().all()
        residual = (cell(z) - z).flatten(1).norm(dim=1)
        assert residual[[0, 2]].max() < 1e-5


def test_a_sample_that_explodes_keeps_an_iterate_from_before() -> None:
    cell = Cell()

    def f(z: Tensor) -> Tensor:
        """The cell, but sample 1 jumps to where its map is infinite."""
        away = torch.where(z[1:2].abs() > 1e10, torch.inf, z[1:2] + 1e12)
        f_z = cell(z)
        return torch.cat((f_z[:1], away, f_z[2:]))

    for solve in (
        lambda: deq.broyden(f, zeros(), 40, eps=1e-6, stop_mode="abs"),
        lambda: mdeq.broyden(root_form(f), zeros(), 40, 1e-6),
    ):
        z = solve()["result"]
        assert not z[1].any()
        residual = (cell(z) - z).flatten(1).norm(dim=1)
        assert residual[[0, 2]].max() < 1e-5


def test_signatures() -> None:
    """The parameters in the order in which those repositories have them."""
    expected = {
        deq.broyden: "f x0 threshold eps stop_mode ls name",
        deq.anderson: "f x0 m lam threshold eps stop_mode beta",
        mdeq.broyden: "g x0 threshold eps ls name",
        shine.broyden: "g x0 threshold eps ls name",
        shine.adj_broyden: "g x0 threshold eps ls name adj_type inverse_direction_fun "
        "inverse_direction_freq",
        mdeq.analyze_broyden: "res_info err judge name training save_err",
    }
    for function, names in expected.items():
        assert list(inspect.signature(function).parameters) == names.split()


def test_refused_options() -> None:
    with pytest.raises(ValueError, match="stop_mode"):
        deq.broyden(torch.cos, zeros(), 5, stop_mode="relative")
    with pytest.raises(ValueError, match="threshold"):
        deq.broyden(torch.cos, zeros(), 0)
    with pytest.raises(ValueError, match="eps"):
        mdeq.broyden(torch.cos, zeros(), 5, -1.0)
    with pytest.raises(ValueError, match="ls must be"):
        mdeq.broyden(torch.cos, zeros(), 5, 1e-3, ls=1)  # type: ignore[arg-type]


def test_analysis_of_results() -> None:
    good = mdeq.broyden(Cell().root, zeros(), 30, 1e-4)
    assert mdeq.analyze_broyden(good) is False
    assert mdeq.analyze_broyden(good, judge=False, save_err=False)[:2] == (-1, "")
    short = mdeq.broyden(Cell().root, zeros(), 2, 1e-9)
    assert mdeq.analyze_broyden(short) is True
    for change, code in (
        ({"result": torch.tensor([torch.nan])}, 1),
        ({"nstep": 0, "diff": 1.0}, 2),
        ({"prot_break": True}, 3),
    ):
        bad = {**good, **change}
        assert mdeq.analyze_broyden(bad)
        with pytest.warns(RuntimeWarning):
            assert mdeq.analyze_broyden(bad, judge=False)[0] == code
    with pytest.raises(ValueError, match="pickled"):
        mdeq.analyze_broyden(good, save_err=True)
