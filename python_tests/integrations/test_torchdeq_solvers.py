"""torchdeq's solvers and ours on the same maps, step by step."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deq_kernels.integrations import anderson
from deq_kernels.integrations import torchdeq as drop_in
from python_tests.problems import MLP, Affine, Gate, Tanh

torchdeq_solver = pytest.importorskip("torchdeq.solver")
SolverStat = pytest.importorskip("torchdeq.solver.stat").SolverStat

THEIRS: dict[str, Callable[..., Any]] = {
    name: torchdeq_solver.get_solver(name) for name in drop_in.SAME_SOLVERS
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("broyden", {}),
    ("broyden", {"LBFGS_thres": 40}),
    ("anderson", {}),
    ("anderson", {"m": 3, "lam": 1e-6, "tau": 0.7}),
    ("fixed_point_iter", {}),
    ("fixed_point_iter", {"tau": 0.6}),
]
CALLS: list[dict[str, Any]] = [
    {"max_iter": 12, "tol": 0.0},
    {"max_iter": 40, "tol": 1e-5},
    {"max_iter": 40, "tol": 1e-5, "stop_mode": "rel", "indexing": [3, 6]},
    {"max_iter": 12, "tol": 1e-9, "indexing": [2, 12]},
    {"max_iter": 8, "tol": 1e-1, "return_final": True, "indexing": [4]},
    {"max_iter": 2, "tol": 1e-9, "indexing": [1]},
    {"max_iter": 0, "tol": 1e-3},
    # Until nothing more is gained, which the last 30 steps tell; Anderson's are not as smooth.
    {"max_iter": 50, "tol": 2e-16},
]


def compare(ours: Any, theirs: Any, *, rtol: float) -> None:
    """Hold states and statistics against each other; errors near rounding are none."""
    # Where nothing was judged, torchdeq's numbers are float32 whatever the state's are.
    moved = theirs[2]["abs_trace"].shape[1] > 1
    floor: dict[str, Any] = {"rtol": rtol, "atol": 1e-12, "check_dtype": moved}
    torch.testing.assert_close(ours[0], theirs[0], **floor)
    assert len(ours[1]) == len(theirs[1])
    for mine, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(mine, other, **floor)
    assert list(ours[2]) == list(theirs[2])
    for key, value in theirs[2].items():
        if key == "nstep" and float(theirs[2]["abs_lowest"].max()) < 1e-12:
            assert ours[2][key].shape == value.shape  # which of equal errors came first
        else:
            torch.testing.assert_close(ours[2][key], value, **floor)


PROBLEMS: dict[str, Callable[[int, int], Callable[[Tensor], Tensor]]] = {
    "tanh": lambda batch, dim: Tanh.random(batch, dim, 0.8),
    "MLP": lambda batch, dim: MLP.random(batch, dim, 20, 0.9),
    # On which the errors of long solves grow beyond rounding in either library.
    "expansive": lambda batch, dim: Affine.random(batch, dim, 1.3),
}
LONG = 12


@pytest.mark.parametrize(
    ("problem", "call"),
    [(p, c) for p in PROBLEMS for c in CALLS if p != "expansive" or c["max_iter"] <= LONG],
    ids=str,
)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_results_step_by_step(
    problem: str, name: str, options: dict[str, Any], call: dict[str, Any]
) -> None:
    batch, dim = 3, 12
    f = PROBLEMS[problem](batch, dim)
    z0 = torch.randn(batch, dim, dtype=torch.float64)
    arguments = {**call, **options}
    ours = drop_in.SAME_SOLVERS[name](f, z0.clone(), **arguments)
    compare(ours, THEIRS[name](f, z0.clone(), **arguments), rtol=1e-6)


@pytest.mark.parametrize(
    "call", [{"tol": 1e-10}, {"return_final": True, "indexing": [3, 9]}], ids=str
)
@pytest.mark.parametrize(("name", "options"), [v for v in VARIANTS if v[0] != "broyden"], ids=str)
def test_a_sample_at_a_residual_of_zero_goes_on(
    name: str, options: dict[str, Any], call: dict[str, Any]
) -> None:
    """As another sample may move it; the statistics of every step are theirs."""
    z0 = torch.zeros(2, 3, dtype=torch.float64)
    arguments: dict[str, Any] = {"max_iter": 25, **call, **options}
    ours = drop_in.SAME_SOLVERS[name](Gate(), z0.clone(), **arguments)
    theirs = THEIRS[name](Gate(), z0.clone(), **arguments)
    assert 0.0 in theirs[2]["abs_trace"] or name == "anderson"
    compare(ours, theirs, rtol=1e-6)


def test_broyden_goes_on_from_a_residual_of_zero() -> None:
    """Torchdeq's own divides by the length of that step: the defect is still there."""
    z0 = torch.zeros(2, 3, dtype=torch.float64)
    call: dict[str, Any] = {"tol": 0.0, "return_final": True}
    iterates = Gate().broyden(12)
    for steps in (1, 2, 5, 12):
        z, _, info = drop_in.broyden(Gate(), z0, max_iter=steps, **call)
        torch.testing.assert_close(z, iterates[steps], rtol=1e-9, atol=1e-9)
        errors = [(Gate()(z) - z).norm(dim=1) for z in iterates[1 : steps + 1]]
        torch.testing.assert_close(info["abs_trace"][:, 1:], torch.stack(errors, dim=1))
    torch.testing.assert_close(THEIRS["broyden"](Gate(), z0, max_iter=1, **call)[0], iterates[1])
    assert THEIRS["broyden"](Gate(), z0, max_iter=12, **call)[0].isnan().any()


@pytest.mark.parametrize("name", list(THEIRS))
def test_signatures(name: str) -> None:
    """Theirs, without what swallows unknown options, and with what SHINE needs."""
    ours = list(inspect.signature(drop_in.SAME_SOLVERS[name]).parameters.values())
    theirs = list(inspect.signature(THEIRS[name]).parameters.values())
    assert theirs[-1].kind is inspect.Parameter.VAR_KEYWORD
    positional = [p for p in ours if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in theirs[:-1]]


@pytest.mark.parametrize("name", list(THEIRS))
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shapes_and_dtypes(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    z0 = torch.zeros(shape, dtype=dtype)
    ours = drop_in.SAME_SOLVERS[name](torch.cos, z0, max_iter=8, indexing=[3])
    assert ours[0].shape == ours[1][0].shape == z0.shape
    assert ours[0].dtype == dtype
    if 0 in shape:
        return  # torchdeq has no largest error of no sample
    theirs = THEIRS[name](torch.cos, z0, max_iter=8, indexing=[3])
    assert isinstance(theirs[2], SolverStat)
    for key, value in theirs[2].items():
        assert ours[2][key].shape == value.shape
        assert ours[2][key].dtype == value.dtype
    torch.testing.assert_close(ours[0], theirs[0].view(shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(THEIRS))
def test_half_precision(name: str) -> None:
    z, _, info = drop_in.SAME_SOLVERS[name](torch.cos, torch.zeros(2, 3).bfloat16(), max_iter=9)
    assert z.dtype == torch.bfloat16
    assert info["abs_trace"].dtype == torch.float32
    assert (z - 0.739).abs().max() < 0.02


@pytest.mark.parametrize("name", list(THEIRS))
def test_a_nan_costs_a_step_and_not_the_sample(name: str) -> None:
    f = Tanh.random(3, 6, 0.5)
    calls = 0

    def faulty(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        f_z = f(z)
        if calls == 5:
            f_z[1] = torch.nan
        return f_z

    z0 = torch.zeros(3, 6, dtype=torch.float64)
    z, _, info = drop_in.SAME_SOLVERS[name](faulty, z0, max_iter=30, tol=1e-6)
    assert z.isfinite().all()
    assert info["abs_lowest"].isfinite().all()
    assert info["abs_trace"][1].isnan().sum() == 1
    assert not info["abs_trace"][[0, 2]].isnan().any()
    # Torchdeq's own lose the sample: the defect is still there.
    calls = 0
    assert THEIRS[name](faulty, z0, max_iter=30, tol=1e-6)[0][1].isnan().all()


def test_a_lost_sample_does_not_keep_the_others_running() -> None:
    f = Tanh.random(2, 6, 0.5)
    calls = 0

    def faulty(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        f_z = f(z)
        f_z[1] = torch.nan
        return f_z

    z0 = torch.zeros(2, 6, dtype=torch.float64)
    z, _, info = drop_in.broyden(faulty, z0, max_iter=50, tol=1e-6)
    assert calls < 20
    assert info["abs_lowest"][0] < 1e-6
    assert torch.equal(z[1], z0[1])


def test_samples_without_progress_are_found_by_their_own_residuals() -> None:
    """Two samples stay at errors far apart: torchdeq's ratio over the batch never sees it."""
    errors = torch.tensor([[2.9e-3], [1.0e-3]], dtype=torch.float64)
    calls = 0

    def stuck(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return z + errors * (1 if calls % 2 else -1)

    z0 = torch.zeros(2, 1, dtype=torch.float64)
    _, _, info = drop_in.broyden(stuck, z0, max_iter=60, tol=1e-3)
    ours = calls
    calls = 0
    THEIRS["broyden"](stuck, z0, max_iter=60, tol=1e-3)
    assert ours < calls
    assert info["abs_trace"].shape == (2, 61)


def test_a_short_history_still_converges() -> None:
    f = Tanh.random(3, 30, 0.95)
    z0 = torch.zeros(3, 30, dtype=torch.float64)
    z, _, info = drop_in.broyden(f, z0, max_iter=60, tol=1e-8, LBFGS_thres=5)
    assert (info["abs_lowest"] < 1e-8).all()
    assert (f(z) - z).norm(dim=1).max() < 2e-8


def test_line_search_shortens_each_samples_steps() -> None:
    """Where plain steps explode, shortened ones do not, whatever the other sample does."""

    def f(z: Tensor) -> Tensor:
        return 1 - z**3

    z0 = torch.tensor([[-3.0], [0.6]], dtype=torch.float64)
    _, _, plain = drop_in.broyden(f, z0, max_iter=10, tol=1e-9)
    z, _, searched = drop_in.broyden(f, z0, max_iter=10, tol=1e-9, ls=True)
    assert plain["abs_lowest"][0] > 1e-2
    assert (searched["abs_lowest"] < 1e-9).all()
    assert (z - 0.6823278).abs().max() < 1e-6
    _, _, alone = drop_in.broyden(f, z0[1:], max_iter=10, tol=1e-9, ls=True)
    taken = int(alone["nstep"]) + 1
    assert torch.equal(alone["abs_trace"][0, :taken], searched["abs_trace"][1, :taken])


def test_a_singular_window_takes_the_damped_step() -> None:
    """A constant map: all residuals but the first are zero, and without a ridge so is G."""
    z0 = torch.ones(2, 3, dtype=torch.float64)
    z, _, info = drop_in.anderson(torch.zeros_like, z0, max_iter=9, tol=0.0, lam=0.0)
    assert torch.equal(z, torch.zeros_like(z0))
    assert (info["abs_lowest"] == 0.0).all()


def test_equal_residuals_do_no_harm() -> None:
    """A translation: all residuals are equal but for rounding, from which no weights follow."""
    step = torch.tensor([[0.1, 0.3, 0.7]], dtype=torch.float64)
    z0 = torch.randn(2, 3, dtype=torch.float64)
    z, _, _ = drop_in.anderson(lambda z: z + step, z0, max_iter=15, tol=0.0, lam=0.0)
    assert (z - z0).abs().max() <= 15 * 0.7 + 1e-9


def test_weights_without_meaning_are_not_used() -> None:
    """Those of ±1e9 and those of a singular system are not, other samples' are."""
    gram = torch.tensor([[1 + 1e-6, 1.0], [1.0, 1 - 1e-6 + 1e-15]], dtype=torch.float64)
    grams = torch.stack((gram, 2 * torch.eye(2).double(), torch.ones(2, 2).double()))
    weights, solved = anderson._weights(grams, 0.0)
    assert solved.tolist() == [False, True, False]
    assert weights.tolist() == [[0.0, 0.0], [0.5, 0.5], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tolerance": 1e-3}, TypeError),
        ({"max_iter": -1}, ValueError),
        ({"max_iter": 3.0}, ValueError),
        ({"tol": -1.0}, ValueError),
        ({"stop_mode": "absolute"}, ValueError),
        ({"return_final": 1}, ValueError),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", list(THEIRS))
def test_refused_options(name: str, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        drop_in.SAME_SOLVERS[name](torch.cos, torch.zeros(2, 3), **options)


def test_options_of_one_solver_are_refused() -> None:
    z0 = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="m must be"):
        drop_in.anderson(torch.cos, z0, m=1)
    with pytest.raises(ValueError, match="ls must be"):
        drop_in.broyden(torch.cos, z0, ls="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="damping"):
        drop_in.fixed_point_iter(torch.cos, z0, tau=3.0)


@pytest.mark.parametrize("name", list(drop_in.OWN_SOLVERS))
@pytest.mark.parametrize("stop_mode", ["abs", "rel"])
def test_own_solvers(name: str, stop_mode: str) -> None:
    if name == "dk_lbfgs":
        f = Affine(torch.diag(torch.linspace(-0.5, 0.5, 5).double()), torch.randn(3, 5).double())
    else:
        f = Affine.random(3, 5, 0.6)
    z0 = torch.zeros(3, 5, dtype=torch.float64)
    z, states, info = drop_in.OWN_SOLVERS[name](f, z0, max_iter=40, tol=1e-8, stop_mode=stop_mode)
    torch.testing.assert_close(z, f.solution(), rtol=1e-6, atol=1e-6)
    assert states == []
    assert list(info) == list(SolverStat())
    residual = (f(z) - z).norm(dim=1)
    torch.testing.assert_close(info["abs_lowest"], residual, rtol=1e-3, atol=1e-13)
    if name != "dk_gmres":
        torch.testing.assert_close(
            info["rel_lowest"], residual / f(z).norm(dim=1), rtol=1e-3, atol=1e-13
        )
        reached = info["abs_trace"].gather(1, info["nstep"].long()[:, None] - 1)[:, 0]
        assert torch.equal(reached, info["abs_lowest"])
    else:
        assert (info["rel_trace"] == -1.0).all()
    assert info["abs_trace"].shape == info["rel_trace"].shape == (3, 40)


def test_own_solvers_stop_each_sample_by_itself() -> None:
    f = Tanh.random(2, 6, 0.9)
    z0 = torch.zeros(2, 6, dtype=torch.float64)

    def alone(z: Tensor) -> Tensor:
        return torch.tanh(z @ f.weight.T + f.bias[:1])

    together, _, _ = drop_in.dk_fixed_point(f, z0, max_iter=200, tol=1e-6)
    single, _, _ = drop_in.dk_fixed_point(alone, z0[:1], max_iter=200, tol=1e-6)
    torch.testing.assert_close(together[:1], single, rtol=1e-14, atol=1e-14)


def test_own_solvers_return_a_state_for_every_index() -> None:
    f = Tanh.random(3, 6, 0.5)
    z0 = torch.zeros(3, 6, dtype=torch.float64)
    seen: list[Tensor] = []

    def recorded(z: Tensor) -> Tensor:
        seen.append(z.clone())
        return f(z)

    z, states, _ = drop_in.dk_broyden(recorded, z0, max_iter=40, tol=1e-6, indexing=[2, 4, 30, 40])
    assert len(states) == 4
    for index, state in zip([2, 4], states, strict=False):
        residuals = torch.stack([(f(x) - x).norm(dim=1) for x in seen[:index]])
        best = torch.stack(seen[:index])[residuals.argmin(dim=0), torch.arange(3)]
        assert torch.equal(state, best)
    assert torch.equal(states[2], z)
    assert torch.equal(states[3], z)


def test_own_solvers_refuse_what_they_cannot_do() -> None:
    z0 = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="indexing needs"):
        drop_in.dk_gmres(torch.cos, z0, indexing=[2])
    with pytest.raises(ValueError, match="on_inverse needs"):
        drop_in.dk_anderson(torch.cos, z0, on_inverse=print)
    with pytest.raises(TypeError, match="ridge"):
        drop_in.dk_anderson(torch.cos, z0, ridge=1.0)


@pytest.mark.parametrize("solver", [drop_in.broyden, drop_in.dk_broyden])
def test_the_inverse_knows_the_last_step(solver: Callable[..., Any]) -> None:
    """H y = s for the change s of the last step and y of the residual, and Hᵀ is its transpose."""
    f = Tanh.random(2, 6, 0.7)
    seen: list[Tensor] = []
    kept: list[Any] = []

    def recorded(z: Tensor) -> Tensor:
        seen.append(z.clone())
        return f(z)

    solver(recorded, torch.zeros(2, 6).double(), max_iter=6, tol=0.0, on_inverse=kept.append)
    (inverse,) = kept
    before, after = seen[-2:]
    change = (f(after) - after) - (f(before) - before)
    torch.testing.assert_close(inverse.matvec(change), after - before, rtol=1e-8, atol=1e-12)
    x = torch.randn(2, 6, dtype=torch.float64)
    left, right = (inverse.rmatvec(x) * change).sum(1), (x * (after - before)).sum(1)
    torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-12)
