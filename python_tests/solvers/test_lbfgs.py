"""L-BFGS against SHINE's appendix A in dense matrices, and on minimisation problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.solvers.machinery import inverse_hessian
from deq_kernels.solvers.machinery.inverse_hessian import InverseHessian


@dataclass(frozen=True)
class Convex:
    """r(z) = ½ zᵀ A z − bᵀ z + c Σ z⁴ / 4 of each sample, with eigenvalues of A in [1, spread]."""

    matrix: Tensor  # [batch, dim, dim]
    bias: Tensor  # [batch, dim]
    quartic: float

    @classmethod
    def random(cls, batch: int, dim: int, *, spread: float = 30.0, quartic: float = 0.3) -> Convex:
        basis = torch.linalg.qr(torch.randn(batch, dim, dim, dtype=torch.float64)).Q
        values = torch.logspace(0, 1, dim, base=spread, dtype=torch.float64)
        matrix = basis * values @ basis.mT
        return cls(matrix, torch.randn(batch, dim, dtype=torch.float64), quartic)

    def value(self, z: Tensor) -> Tensor:
        image = torch.einsum("bij,bj->bi", self.matrix, z)
        return (z * (0.5 * image - self.bias) + 0.25 * self.quartic * z**4).sum(1)

    def gradient(self, z: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", self.matrix, z) - self.bias + self.quartic * z**3

    def hessian(self, z: Tensor) -> Tensor:
        return self.matrix + torch.diag_embed(3 * self.quartic * z**2)

    def __call__(self, z: Tensor) -> Tensor:
        """The map whose fixed point is the minimiser."""
        return z - self.gradient(z)


def bfgs(inverse: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """SHINE's update of a dense inverse Hessian, skipped where ⟨s, y⟩ ≤ 0."""
    rho = s @ y
    if rho <= 0:
        return inverse
    a = s - inverse @ y
    updated = inverse + (torch.outer(a, s) + torch.outer(s, a)) / rho
    updated = updated - (a @ y) / rho**2 * torch.outer(s, s)
    torch.testing.assert_close(updated @ y, s, rtol=1e-6, atol=1e-9)  # the secant condition
    return updated


def outer(z: Tensor) -> Tensor:
    """g_θ of a hyperparameter whose effect changes with the iterate."""
    return torch.sin(2 * z) + 1.0


def appendix_a(
    problem: Convex,
    sample: int,
    z0: Tensor,
    evaluations: int,
    *,
    opa_every: int | None = None,
    history_length: int = 1000,
    gamma: float = 1.0,
    opa_first_step: float = 1.0,
) -> tuple[list[Tensor], Tensor]:
    """The points where one sample is evaluated, with α = 1, and H at the end."""
    dim = z0.shape[1]

    def gradient(z: Tensor) -> Tensor:
        everyone = z0.clone()
        everyone[sample] = z
        return problem.gradient(everyone)[sample]

    def inverse_of(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        inverse = gamma * torch.eye(dim, dtype=torch.float64)
        for s, y in pairs[-history_length:]:
            inverse = bfgs(inverse, s, y)
        return inverse

    pairs: list[tuple[Tensor, Tensor]] = []
    z, length = z0[sample], opa_first_step
    g, points, n = gradient(z), [z], 0
    while len(points) < evaluations:
        if opa_every is not None and n % opa_every == 0:
            e = length * inverse_of(pairs) @ outer(z)
            points.append(z + e)
            if e @ (gradient(z + e) - g) > 0:
                pairs.append((e, gradient(z + e) - g))
            if len(points) == evaluations:
                break
        s = -inverse_of(pairs) @ g
        new = gradient(z + s)
        if s @ (new - g) > 0:
            pairs.append((s, new - g))
        z, g, n, length = z + s, new, n + 1, s.norm()
        points.append(z)
    return points, inverse_of(pairs)


def dense(inverse: dk.InverseJacobian, sample: int, batch: int, dim: int) -> Tensor:
    """H of one sample, from its products with unit vectors."""
    columns = torch.eye(dim, dtype=torch.float64).expand(batch, -1, -1)
    product, transposed = inverse.matvec(columns)[sample], inverse.rmatvec(columns)[sample]
    torch.testing.assert_close(product, transposed, rtol=1e-9, atol=1e-9)  # symmetric
    return product


@pytest.mark.parametrize("history_length", [1, 3, None])
@pytest.mark.parametrize(
    "options",
    [{}, {"gamma": 0.7}, {"opa_every": 3}, {"opa_every": 1, "opa_first_step": 0.1}],
    ids=str,
)
def test_follows_appendix_a(history_length: int | None, options: dict[str, Any]) -> None:
    """All points of the solve, and H, with and without additional updates and dropped pairs."""
    problem = Convex.random(3, 10, spread=1.8, quartic=0.1)
    z0 = 0.3 * torch.randn(3, 10, dtype=torch.float64)
    points: list[Tensor] = []

    def recorded(z: Tensor) -> Tensor:
        points.append(z.clone())
        return problem(z)

    given = {**options, "outer_gradient": outer} if "opa_every" in options else options
    solution = dk.LBFGS(
        max_steps=11, rtol=0.0, line_search=None, history_length=history_length, **given
    )(recorded, z0)
    for sample in range(3):
        expected, inverse = appendix_a(
            problem, sample, z0, 11, history_length=history_length or 1000, **options
        )
        for point, there in zip(points, expected, strict=True):
            torch.testing.assert_close(point[sample], there, rtol=1e-7, atol=1e-9)
        assert solution.inverse_jacobian is not None
        torch.testing.assert_close(
            -dense(solution.inverse_jacobian, sample, 3, 10), inverse, rtol=1e-6, atol=1e-7
        )
    held = min(history_length or 1000, 10)
    assert solution.inverse_jacobian.rank.tolist() == [2 * held] * 3


def test_a_dropped_pair_leaves_a_positive_definite_inverse() -> None:
    """As Liu & Nocedal drop it; subtracting its update from H would break the newest secant."""
    problem = Convex.random(2, 12)
    z = torch.randn(2, 12, dtype=torch.float64)
    hessian = InverseHessian(z, 2, 1.0)
    everyone = torch.ones(2, dtype=torch.bool)
    for _ in range(6):
        s = torch.randn(2, 12, dtype=torch.float64)
        y = problem.gradient(z + s) - problem.gradient(z)
        assert hessian.append_(s, y, everyone)[0].all()
        torch.testing.assert_close(hessian.matvec(y, everyone), s, rtol=1e-9, atol=1e-9)
        matrix = -hessian.negative().matvec(torch.eye(12).double().expand(2, -1, -1))
        assert (torch.linalg.eigvalsh(matrix) > 0).all()
    hessian.reset_(torch.tensor([True, False]))
    torch.testing.assert_close(hessian.matvec(y, everyone)[0], y[0])
    torch.testing.assert_close(hessian.matvec(y, everyone)[1], s[1], rtol=1e-9, atol=1e-9)
    assert hessian.negative().rank.tolist() == [0, 4]


def test_pairs_without_positive_curvature_are_skipped() -> None:
    hessian = InverseHessian(torch.zeros(3, 2, dtype=torch.float64), 4, 1.0)
    s = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, -1.0 + 1e-17]], dtype=torch.float64)
    assert not hessian.append_(s, y, torch.ones(3, dtype=torch.bool))[0].any()
    assert hessian.count.tolist() == [0, 0, 0]


SEARCHES = [
    {"line_search": "strong_wolfe"},
    {"line_search": "armijo"},
    {"line_search": "strong_wolfe", "objective": True},
    {"line_search": "armijo", "objective": True},
]


@pytest.mark.parametrize("opa_every", [None, 4])
@pytest.mark.parametrize("history_length", [None, 6])
@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_minimises(
    search: dict[str, Any], history_length: int | None, opa_every: int | None
) -> None:
    """Badly scaled, far start: a full step would overshoot a thousandfold."""
    problem = Convex.random(4, 20, spread=1000.0)
    options = dict(search)
    if "objective" in options:
        options["objective"] = problem.value
    if opa_every is not None:
        options |= {"opa_every": opa_every, "outer_gradient": outer}
    if history_length is not None:  # few pairs cannot undo a bad initial scale for all directions
        options["gamma"] = 1e-2
    solution = dk.LBFGS(
        max_steps=600,
        rtol=0.0,
        atol=1e-9,
        stall_steps=None,
        history_length=history_length,
        **options,
    )(problem, 3 * torch.randn(4, 20, dtype=torch.float64))
    assert solution.converged.all()
    assert (problem.gradient(solution.z).norm(dim=1) <= 1e-9).all()


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_a_function_that_is_not_convex(search: dict[str, Any]) -> None:
    """Rosenbrock's valley: negative curvature on the way, one minimum."""

    def value(z: Tensor) -> Tensor:
        return (1 - z[:, 0]) ** 2 + 100 * (z[:, 1] - z[:, 0] ** 2) ** 2

    def f(z: Tensor) -> Tensor:
        return z - torch.func.grad(lambda x: value(x).sum())(z)

    options = {**search, "objective": value} if "objective" in search else search
    z0 = torch.tensor([[-1.2, 1.0], [3.0, -2.0]], dtype=torch.float64)
    solution = dk.LBFGS(max_steps=400, rtol=0.0, atol=1e-9, stall_steps=None, **options)(f, z0)
    assert solution.converged.all()
    torch.testing.assert_close(solution.z, torch.ones_like(z0), rtol=1e-7, atol=1e-7)


def test_line_search_rescues_where_full_steps_diverge() -> None:
    problem = Convex.random(2, 10, spread=50.0, quartic=5.0)
    z0 = 3 * torch.randn(2, 10, dtype=torch.float64)
    options = {"max_steps": 150, "rtol": 0.0, "atol": 1e-8, "stall_steps": None}
    assert dk.LBFGS(**options)(problem, z0).converged.all()
    bare = dk.LBFGS(**options, line_search=None)(problem, z0)
    assert set(bare.status.tolist()) <= {dk.Status.DIVERGED, dk.Status.MAX_STEPS}


def test_a_direction_that_does_not_descend_empties_the_history(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rounding can do that to H; here its product is turned around once."""
    problem = Convex.random(1, 10, spread=5.0)
    points: list[Tensor] = []
    products: list[int] = []
    product = InverseHessian.matvec

    def turned(
        self: InverseHessian, x: Tensor, samples: Tensor, dots: Tensor | None = None
    ) -> Tensor:
        products.append(1)
        return product(self, x, samples, dots) * (-1 if len(products) == 5 else 1)

    def recorded(z: Tensor) -> Tensor:
        points.append(z.clone())
        return problem(z)

    monkeypatch.setattr(InverseHessian, "matvec", turned)
    solver = dk.LBFGS(max_steps=6, rtol=0.0, gamma=0.2, line_search="armijo")
    solution = solver(recorded, torch.randn(1, 10, dtype=torch.float64))
    assert len(products) == 5
    torch.testing.assert_close(points[5], points[4] - 0.2 * problem.gradient(points[4]))
    assert solution.inverse_jacobian.rank.tolist() == [2]


def test_opa_inverts_in_the_direction_of_the_outer_problem() -> None:
    """‖(H − B⁻¹) g_θ‖ at the solution falls by far more than without (SHINE, theorem 3)."""
    problem = Convex.random(6, 40, spread=50.0)
    z0 = torch.randn(6, 40, dtype=torch.float64)
    errors = {}
    for opa_every in (None, 5, 1):
        options = {"opa_every": opa_every, "outer_gradient": outer} if opa_every else {}
        solution = dk.LBFGS(max_steps=300, rtol=0.0, atol=1e-8, stall_steps=None, **options)(
            problem, z0
        )
        assert solution.converged.all()
        direction = outer(solution.z)
        found = -solution.inverse_jacobian.matvec(direction)
        exact = torch.linalg.solve(problem.hessian(solution.z), direction[:, :, None])[:, :, 0]
        errors[opa_every] = (found - exact).norm(dim=1) / exact.norm(dim=1)
    assert (errors[5] < 0.5 * errors[None]).all()
    assert (errors[1] < 0.1 * errors[None]).all()


def test_shine_takes_the_hypergradient_of_a_ridge() -> None:
    """dL/dθ of z* = argmin r(z) + ½ θ ‖z‖², where g_θ = z: SHINE's one hyperparameter."""
    problem = Convex.random(1, 25, spread=20.0)
    target = torch.randn(1, 25, dtype=torch.float64)
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def cell(z: Tensor) -> Tensor:
        return problem(z) - theta * z

    options = {"max_steps": 300, "rtol": 0.0, "atol": 1e-9, "stall_steps": None}
    gradients = {}
    for name, outer_options in (
        ("plain", {}),
        ("aware", {"opa_every": 3, "outer_gradient": lambda z: z}),
    ):
        layer = dk.DEQ(cell, solver=dk.LBFGS(**options, **outer_options), gradient=dk.Shine())
        z = layer(torch.zeros_like(target))
        (gradients[name],) = torch.autograd.grad((z - target).square().sum(), theta)
    hessian = problem.hessian(z.detach()) + theta.detach() * torch.eye(25).double()
    solved = torch.linalg.solve(hessian, z.detach()[:, :, None])[:, :, 0]
    exact = -(2 * (z.detach() - target) * solved).sum()
    assert (gradients["aware"] - exact).abs() < 1e-2 * exact.abs()
    assert (gradients["aware"] - exact).abs() < 0.3 * (gradients["plain"] - exact).abs()


def test_options_out_of_range() -> None:
    for options, message in (
        ({"line_search": "wolfe"}, "line_search must be one of 'strong_wolfe', 'armijo', None"),
        ({"line_search": None, "objective": lambda z: z[:, 0]}, "objective is for the line search"),
        ({"history_length": 0}, "history_length must be a whole number, at least 1"),
        ({"opa_every": 2}, "got opa_every without outer_gradient"),
        ({"opa_first_step": 0.0}, "opa_first_step must be finite and above 0"),
        ({"gamma": float("inf")}, "gamma must be finite and above 0"),
        ({"cuda_graph": True}, "LBFGS must have cuda_graph=False"),
    ):
        with pytest.raises(ValueError, match=message):
            dk.LBFGS(**options)


@pytest.mark.parametrize(
    ("objective", "error", "message"),
    [
        (lambda z: z.sum(), ValueError, r"one value per sample, \[2\]; got \[\]"),
        (lambda z: z, ValueError, r"one value per sample, \[2\]; got \[2, 3\]"),
        (lambda z: 1.0, TypeError, "must return a tensor of floating-point numbers; got float"),
        (lambda z: z[:, 0].long(), TypeError, "got torch.int64"),
    ],
)
def test_wrong_objectives_are_named(objective: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dk.LBFGS(objective=objective)(lambda z: 0.5 * z, torch.ones(2, 3))


def test_dots_taken_along_with_a_pair_change_no_bit() -> None:
    """Samples that take the pair, refuse it, and are left out."""
    problem = Convex.random(3, 12)
    one, other = (InverseHessian(torch.zeros(3, 12), 2, 0.7) for _ in range(2))
    z, x = torch.randn(3, 12, dtype=torch.float64), torch.randn(3, 12)
    for _ in range(3):
        s = torch.randn(3, 12, dtype=torch.float64)
        y = problem.gradient(z + s) - problem.gradient(z)
        y[1] = -y[1]
        pair, samples = (s.float(), y.float()), torch.tensor([True, True, False])
        assert one.append_(*pair, samples)[0].tolist() == [True, False, False]
        dots = other.append_(*pair, samples, x)[1]
        everyone = torch.ones(3, dtype=torch.bool)
        product = one.matvec(x, everyone)
        assert not torch.equal(product[0], 0.7 * x[0])
        assert torch.equal(other.matvec(x, everyone, dots), product)


@pytest.mark.parametrize("history_length", [None, 7])
def test_room_made_in_between_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, history_length: int | None
) -> None:
    problem = Convex.random(3, 12)
    solver = dk.LBFGS(max_steps=20, rtol=1e-12, gamma=0.1, history_length=history_length)

    def solve() -> list[Tensor]:
        solution = solver(lambda z: z - problem.gradient(z), torch.zeros_like(problem.bias))
        products = (solution.inverse_jacobian.matvec, solution.inverse_jacobian.rmatvec)
        return [solution.z, solution.trace, *(product(problem.bias) for product in products)]

    whole = solve()
    monkeypatch.setattr(inverse_hessian, "FIRST_ROOM", 2)
    for grown, expected in zip(solve(), whole, strict=True):
        assert torch.equal(grown.nan_to_num(-1.0), expected.nan_to_num(-1.0))


def test_steps_that_are_not_taken_need_no_room() -> None:
    """A table for all pairs that these steps could bring has 10¹¹ entries a sample."""
    problem = Convex.random(3, 12)
    solution = dk.LBFGS(max_steps=300_000, rtol=1e-6, gamma=0.1)(
        lambda z: z - problem.gradient(z), torch.zeros_like(problem.bias)
    )
    assert solution.converged.all()
    assert solution.inverse_jacobian.u.shape[1] == 2 * int(solution.steps.max())
