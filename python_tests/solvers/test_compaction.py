"""Compaction: f is evaluated on the samples that still run, and no bit changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.solvers.machinery import loop
from deq_kernels.solvers.machinery.compaction import padded
from deq_kernels.solvers.machinery.ranks import Ranks
from deq_kernels.solvers.machinery.running import DelayedCount

SOLVERS = (dk.Broyden, dk.FixedPoint, dk.Anderson, dk.GMRES, dk.LBFGS)
every_solver = pytest.mark.parametrize("solver", SOLVERS)
BATCH = 64


def affine(z: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Elementwise, so that a sample's bits do not depend on the batch it is in."""
    return gain * z + shift


def needing(*steps: int) -> Tensor:
    """Gains with which Picard from zero needs that many evaluations to reach 1e-8, [batch, 1]."""
    return 1e-8 ** (1 / (torch.tensor(steps, dtype=torch.float64) - 1))[:, None]


def two_halves(dim: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """z0, gain and shift of 64 samples, of which every other one needs 5 steps, the rest 25."""
    gain = needing(*([5, 25] * (BATCH // 2)))
    z0 = torch.zeros(BATCH, dim, dtype=torch.float64)
    return z0, gain, torch.ones(BATCH, dim, dtype=torch.float64)


def many(dim: int = 9, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """z0, gain and shift of samples that stop one after the other, for every solver."""
    spread = torch.linspace(0.0, 0.4, BATCH)[torch.randperm(BATCH)]
    gain = 0.3 + spread[:, None] * torch.linspace(-1, 1, dim)
    return torch.zeros(BATCH, dim, dtype=dtype), gain.to(dtype), torch.randn(BATCH, dim).to(dtype)


class Counted:
    """Counts rows and calls, and keeps the sizes of the batches."""

    def __init__(self, f: Callable[..., Any] = affine) -> None:
        self.f = f
        self.sizes: list[int] = []

    def __call__(self, z: Any, *inputs: Any) -> Any:
        self.sizes.append(len(z[0] if isinstance(z, tuple) else z))
        return self.f(z, *inputs)


def assert_same_bits(one: dk.Solution, other: dk.Solution) -> None:
    pairs = [(one.z, other.z), (one.trace, other.trace), (one.status, other.status)]
    pairs += [(one.steps, other.steps), (one.residual, other.residual)]
    if one.inverse_jacobian is not None:
        assert other.inverse_jacobian is not None
        pairs.append((one.inverse_jacobian.rank, other.inverse_jacobian.rank))
        for product in ("matvec", "rmatvec"):
            x = torch.linspace(-1, 1, one.z.numel()).view_as(one.z).to(one.z.dtype)
            pairs.append(
                tuple(getattr(s.inverse_jacobian, product)(x) for s in (one, other))  # type: ignore[arg-type]
            )
    for a, b in pairs:
        assert torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0))


def test_half_at_5_steps_half_at_25_evaluates_little_more_than_that() -> None:
    z0, gain, shift = two_halves()
    options: dict[str, Any] = {"max_steps": 40, "rtol": 0.0, "atol": 1.001e-8 * 20**0.5}
    counted = Counted()
    compact = dk.FixedPoint(compact=True, **options)(dk.PerSample(counted, gain, shift), z0)
    plain = dk.FixedPoint(**options)(lambda z: affine(z, gain, shift), z0)
    assert plain.steps.tolist() == [5, 25] * (BATCH // 2)
    needed = int(plain.steps.sum())
    assert plain.evaluations == 25 * BATCH
    assert compact.evaluations == sum(counted.sizes) <= 1.15 * needed
    assert_same_bits(compact, plain)


@every_solver
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_every_solver_gives_the_same_bits(solver: type[dk.Solver], backend: str) -> None:
    z0, gain, shift = many()
    options: dict[str, Any] = {"max_steps": 60, "rtol": 1e-7}
    counted = Counted()
    with dk.use_backend(backend):
        compact = solver(compact=True, **options)(dk.PerSample(counted, gain, shift), z0)
        plain = solver(**options)(lambda z: affine(z, gain, shift), z0)
        assert_same_bits(compact, plain)
    needed = int(plain.steps.sum())
    assert plain.converged.all()
    assert compact.evaluations == sum(counted.sizes)
    assert needed <= compact.evaluations <= 1.25 * needed
    assert compact.evaluations < plain.evaluations == BATCH * int(plain.steps.max())
    assert set(counted.sizes) <= {64, 56, 48, 40, 32, 28, 24, 20, 16, 14, 12, 10, *range(1, 9)}
    assert counted.sizes == sorted(counted.sizes, reverse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solver", [dk.Broyden, dk.Anderson])
def test_every_dtype(solver: type[dk.Solver], dtype: torch.dtype) -> None:
    z0, gain, shift = many(dtype=dtype)
    options: dict[str, Any] = {"max_steps": 30, "rtol": 1e-5 if dtype == torch.float32 else 2e-2}
    compact = solver(compact=True, **options)(dk.PerSample(affine, gain, shift), z0)
    plain = solver(**options)(lambda z: affine(z, gain, shift), z0)
    assert compact.evaluations < plain.evaluations
    assert_same_bits(compact, plain)


@every_solver
def test_samples_that_fail_are_left_out_too(solver: type[dk.Solver]) -> None:
    """NaN, growth and a map without a fixed point, next to samples that converge."""
    z0, gain, shift = many()
    gain[3], gain[10:30], shift[31] = 5.0, 1.0, torch.nan
    options: dict[str, Any] = {"max_steps": 60, "rtol": 1e-7, "stall_steps": 9}
    compact = solver(compact=True, **options)(dk.PerSample(affine, gain, shift), z0)
    plain = solver(**options)(lambda z: affine(z, gain, shift), z0)
    assert len(plain.status.unique()) >= 3
    assert compact.evaluations < plain.evaluations
    assert_same_bits(compact, plain)


class LateSlots:
    """Delivers a count when it is asked for."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}

    def send(self, count: Tensor, slot: int) -> None:
        self._slots[slot] = int(count)

    def receive(self, slot: int) -> int:
        return self._slots.pop(slot)


@contextmanager
def _late(active: Tensor, synchronized: Ranks = False) -> Iterator[DelayedCount]:
    yield DelayedCount(active, LateSlots())


@every_solver
def test_a_late_count_leaves_samples_out_one_step_later(
    solver: type[dk.Solver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the size comes from the count before, the rows from the statuses now."""
    z0, gain, shift = many()
    options: dict[str, Any] = {"max_steps": 60, "rtol": 1e-7}
    present = solver(compact=True, **options)(dk.PerSample(affine, gain, shift), z0)
    monkeypatch.setattr(loop, "running_count", _late)
    plain = solver(**options)(lambda z: affine(z, gain, shift), z0)
    late = solver(compact=True, **options)(dk.PerSample(affine, gain, shift), z0)
    assert_same_bits(late, plain)
    assert present.evaluations < late.evaluations < plain.evaluations


def test_inputs_keep_to_their_samples() -> None:
    """Tensors, tuples, None and inputs of other dtypes; a state in two pieces."""
    z0, gain, shift = many(8)
    names = torch.arange(BATCH)
    shared = torch.eye(BATCH, dtype=torch.float64)  # as many rows as the batch, by accident
    seen: list[list[int]] = []

    def f(z: Any, given: Any, name: Tensor, nothing: None) -> Any:
        assert nothing is None
        assert shared.shape == (BATCH, BATCH)
        assert len(z[0]) == len(z[1]) == len(given[0]) == len(given[1]) == len(name)
        seen.append(name.tolist())
        out = affine(torch.cat((z[0].flatten(1), z[1]), dim=1), *given)
        # Exact: one entry of each row of `shared` is 1, the others are 0.
        out = out * (shared[name] @ torch.ones(BATCH, 1, dtype=torch.float64))
        return out[:, :6].reshape(-1, 2, 3), out[:, 6:]

    options: dict[str, Any] = {"max_steps": 60, "rtol": 1e-7}
    start = (z0[:, :6].reshape(-1, 2, 3), z0[:, 6:])
    map_ = dk.PerSample(f, (gain, shift), names, None)
    pieces = dk.Broyden(compact=True, **options)(map_, start)
    whole = dk.Broyden(**options)(lambda z: affine(z, gain, shift), z0)
    assert torch.equal(torch.cat((pieces.z[0].flatten(1), pieces.z[1]), dim=1), whole.z)
    assert torch.equal(pieces.steps, whole.steps)
    for number, rows in enumerate(seen, start=1):
        assert rows == sorted(rows)
        assert set(names[whole.steps >= number].tolist()) <= set(rows)
    assert len(seen) == int(whole.steps.max())


def test_the_map_itself_takes_all_samples() -> None:
    z0, gain, shift = many()
    f = dk.PerSample(affine, gain, shift)
    assert torch.equal(f(z0), affine(z0, gain, shift))
    solution = dk.Broyden(max_steps=60)(f, z0)  # without compact
    assert solution.evaluations == BATCH * int(solution.steps.max())
    rows = torch.tensor([5, 7])
    assert torch.equal(f.select(rows)(z0[rows]), affine(z0, gain, shift)[rows])


@pytest.mark.parametrize("count", [*range(1, 200), 1000, 4097, 10**6 + 1])
def test_padded_sizes_are_few_and_close(count: int) -> None:
    size = padded(count)
    assert count <= size < 1.25 * count
    assert padded(size) == size
    assert len({padded(n) for n in range(1, count + 1)}) <= 4 * count.bit_length()


def test_nothing_running_at_a_batch_of_one_and_of_none() -> None:
    for batch in (0, 1):
        z0 = torch.zeros(batch, 3)
        solution = dk.Broyden(compact=True)(dk.PerSample(lambda z: 0.5 * z + 1.0), z0)
        assert solution.evaluations == int(solution.steps.sum())


def test_a_plain_function_is_refused() -> None:
    with pytest.raises(TypeError, match=r"as a PerSample; got function\. Pass PerSample\(f, x"):
        dk.Broyden(compact=True)(lambda z: 0.5 * z, torch.zeros(2, 3))


def test_inputs_are_checked() -> None:
    with pytest.raises(TypeError, match=r"Input 1 of PerSample must be a tensor, .* got float"):
        dk.PerSample(affine, torch.ones(2, 3), 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Input 0 of PerSample must have one row per sample; got"):
        dk.PerSample(affine, torch.tensor(1.0))
    for compact in (False, True):
        with pytest.raises(ValueError, match=r"Input 1 of .* \[2, \.\.\.\]; got \[3, 2\]\. What"):
            dk.Broyden(compact=compact)(
                dk.PerSample(affine, torch.ones(2, 1), torch.ones(3, 2)), torch.zeros(2, 2)
            )


def test_options_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="compact must be a bool; got 1"):
        dk.Broyden(compact=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="compact and cuda_graph exclude each other"):
        dk.Broyden(compact=True, cuda_graph=True)
    with pytest.raises(ValueError, match="AdjointBroyden must have compact=False and synchronized"):
        dk.AdjointBroyden(compact=True)


def test_an_input_that_was_not_given_is_an_error_that_says_so() -> None:
    z0, gain, shift = two_halves()
    solver = dk.FixedPoint(compact=True, max_steps=40, rtol=0.0, atol=1.001e-8 * 20**0.5)
    with pytest.raises(RuntimeError, match="must match the size of tensor") as raised:
        solver(dk.PerSample(lambda z: affine(z, gain, shift)), z0)
    if hasattr(raised.value, "__notes__"):
        assert (
            "evaluation 6 of f in this solve, on 32 of its 64 samples: what f takes"
            in (raised.value.__notes__[0])
        )

    def fixed_size(z: Tensor, gain: Tensor) -> Tensor:
        return (
            affine(torch.zeros_like(z0), needing(*([5, 25] * 32)), shift)
            if len(z) < 64
            else (affine(z, gain, shift))
        )

    with pytest.raises(
        ValueError, match=r"takes, \[32, 20\]; got \[64, 20\]\. This was evaluation"
    ):
        solver(dk.PerSample(fixed_size, gain), z0)


@pytest.mark.parametrize("gradient", [dk.Implicit(), dk.Shine(), dk.Neumann(steps=5, damping=0.5)])
def test_a_layer_with_compaction(gradient: dk.Gradient) -> None:
    """The same solution, and the same gradients of inputs and parameters."""
    z0, gain, shift = many(6)
    outcomes = []
    for compact in (False, True):
        counted = Counted()
        scale = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
        x = shift.clone().requires_grad_()

        def cell(
            z: Tensor,
            number: float,
            x: Tensor,
            *,
            gain: Tensor,
            counted: Any = counted,
            s: Any = scale,
        ) -> Tensor:
            return s * number * counted(z, gain, x)

        solver = dk.Broyden(max_steps=60, rtol=1e-8, compact=compact)
        layer = dk.DEQ(cell, solver=solver, gradient=gradient, per_sample=(1, "gain"))
        z = layer(z0, 0.5, x, gain=gain)
        (z * torch.linspace(-1, 1, 6)).sum().backward()
        outcomes.append((z.detach(), x.grad, scale.grad))
        assert (counted.sizes[1:-1] != [BATCH] * len(counted.sizes[1:-1])) == compact
        assert layer.last_solution is not None
        assert (
            layer.last_solution.evaluations < BATCH * layer.last_solution.steps.max()
        ) == compact
    for plain, compacted in zip(*outcomes, strict=True):
        assert torch.equal(plain, compacted)


def test_a_layer_must_be_told_what_is_per_sample() -> None:
    compact = dk.Broyden(compact=True)
    with pytest.raises(ValueError, match="solver has compact=True, so the layer must know"):
        dk.DEQ(affine, solver=compact)
    with pytest.raises(ValueError, match="eval_solver has compact=True"):
        dk.DEQ(affine, eval_solver=compact)
    layer = dk.DEQ(affine, solver=compact, per_sample=(0, "shift"))
    with pytest.raises(ValueError, match=r"here \[0, 1\]; got 'shift'\. Pass that argument too"):
        layer(torch.zeros(2, 3), torch.ones(2, 1), torch.ones(2, 3))
    z = dk.DEQ(lambda z: 0.5 * z + 1.0, solver=compact, per_sample=())(torch.zeros(2, 3))
    torch.testing.assert_close(z, torch.full((2, 3), 2.0), rtol=1e-3, atol=1e-3)
