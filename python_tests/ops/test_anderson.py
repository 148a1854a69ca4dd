"""The op family `anderson` against explicit least squares in float64, on every backend present."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops import OPS, anderson
from deq_kernels.ops.anderson.reference import dependent_share
from deq_kernels.ops.termination import Counter, Norm, Tables
from python_tests.tolerances import RELATIVE, assert_close

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DTYPE_PAIRS = [(dtype, None) for dtype in DTYPES] + [
    (torch.float64, torch.float32),
    (torch.float64, torch.bfloat16),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
]
ODD_DIMS = (1, 3, 15, 17, 4095, 4096, 4097, 9000)
OPTIONS = {
    "rtol": 0.0,
    "atol": 0.0,
    "damping": 1.0,
    "regularization": 1e-8,
    "stall_steps": 0,
    "divergence_factor": 1e6,
}


def mixed(iterates: list[Tensor], images: list[Tensor], damping: float, ridge: float) -> Tensor:
    """Σ a_i (z_i + β r_i) of one sample with min ‖Σ a_i r_i‖² + ridge ‖r‖² ‖a‖², Σ a_i = 1.

    By orthogonal least squares over the vectors themselves, in float64 and on the CPU, which alone
    has a solver for any rank: no Gram matrix, no changes.
    """
    z = torch.stack(iterates).double().cpu()
    r = torch.stack(images).double().cpu() - z
    window = len(z)
    root = ridge**0.5 * r[-1].norm()
    identity = torch.eye(window, dtype=torch.float64, device="cpu")
    stacked = torch.cat((r.T, root * identity))
    # a = e_newest + basis · free, where every column of the basis sums to zero.
    basis = identity[:, :-1].clone()
    basis[-1] = -1.0
    free = torch.linalg.lstsq(stacked @ basis, -stacked[:, -1:], driver="gelsd").solution[:, 0]
    a = basis @ free
    a[-1] += 1.0
    return (a @ (z + damping * r)).to(iterates[-1].device)


def state_of(
    batch: int,
    dim: int,
    history_length: int,
    dtype: torch.dtype = torch.float64,
    history_dtype: torch.dtype | None = None,
    max_steps: int = 10,
) -> tuple[Tensor, Tensor, anderson.Window, Tables]:
    z = torch.randn(batch, dim, dtype=torch.float64).to(dtype)
    window = anderson.Window.new(z, history_length, history_dtype)
    return z, torch.empty_like(z), window, Tables.new(batch, max_steps, z.device)


def coarser(*dtypes: torch.dtype) -> torch.dtype:
    return max(dtypes, key=RELATIVE.__getitem__)


@pytest.mark.interpreter(dim=(3, 4097))
@pytest.mark.parametrize(("dtype", "history_dtype"), DTYPE_PAIRS)
@pytest.mark.parametrize("dim", ODD_DIMS)
def test_steps_equal_explicit_least_squares(
    backend: str, dtype: torch.dtype, history_dtype: torch.dtype | None, dim: int
) -> None:
    """Six steps of a window of 4, each held against float64 algebra on what the op was given."""
    batch, length, damping = 2, min(4, dim), 0.7
    ridge = 1e-2
    z, best, window, tables = state_of(batch, dim, length, dtype, history_dtype)
    options = {**OPTIONS, "damping": damping, "regularization": ridge}
    iterates: list[list[Tensor]] = [[] for _ in range(batch)]
    images: list[list[Tensor]] = [[] for _ in range(batch)]
    for _ in range(6):
        f_z = (z.double() + torch.randn(batch, dim, dtype=torch.float64)).to(dtype)
        for sample in range(batch):
            iterates[sample] = [*iterates[sample], z[sample].clone()][-length:]
            images[sample] = [*images[sample], f_z[sample]][-length:]
        anderson.step_(f_z, z, best, window, tables, **options)
        for sample in range(batch):
            expected = mixed(iterates[sample], images[sample], damping, ridge)
            assert_close(z[sample], expected, coarser(dtype, history_dtype or dtype))
    assert tables.counters[:, Counter.COUNT].tolist() == [6, 6]


@pytest.mark.interpreter(history_length=(1, 3, 20), damping=(0.6,))
@pytest.mark.parametrize("history_length", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("damping", [1.0, 0.6])
@pytest.mark.parametrize("ridge", [0.0, 1e-8, 1e-2])
def test_trajectory_equals_explicit_least_squares(
    backend: str, history_length: int, damping: float, ridge: float
) -> None:
    """A whole solve against the same method run from the textbook, on a nonlinear map."""
    gain = torch.linspace(-1.2, 0.9, 60, dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return torch.sin(gain * z + z.roll(1, dims=-1) * 0.3) + 0.5

    steps = 9
    z0 = torch.randn(1, 60, dtype=torch.float64)
    z, iterates, images = z0[0], [], []
    residuals = []
    for _ in range(steps):
        iterates, images = [*iterates, z][-history_length:], [*images, f(z)][-history_length:]
        residuals.append((images[-1] - z).norm())
        z = mixed(iterates, images, damping, ridge)
    solver = dk.Anderson(
        history_length=history_length,
        damping=damping,
        regularization=ridge,
        max_steps=steps,
        rtol=0.0,
    )
    trace = solver(f, z0).trace[0]
    torch.testing.assert_close(trace, torch.stack(residuals), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("dtype", "history_dtype"), DTYPE_PAIRS)
def test_step_agrees_with_the_reference(
    fused_backend: str, dtype: torch.dtype, history_dtype: torch.dtype | None
) -> None:
    """The same evaluations on both backends, to the accuracy of the dtype."""
    ends = []
    for context in (nullcontext(), dk.use_backend("reference")):
        torch.manual_seed(3)
        z, best, window, tables = state_of(3, 300, 4, dtype, history_dtype)
        with context:
            for _ in range(7):
                f_z = torch.randn(3, 300, dtype=torch.float64).to(dtype)
                anderson.step_(f_z, z, best, window, tables, **OPTIONS)
        ends.append((z, best, tables.trace[:, :7]))
    # A last bit in float32 can tip the rounding of what is stored.
    coarsest = coarser(dtype, history_dtype or dtype)
    for fused, reference in zip(*ends, strict=True):
        assert_close(fused, reference, coarsest)


@pytest.mark.parametrize("ridge", [0.0, 1e-8, 1.0])
def test_equal_residuals_leave_the_damped_step(backend: str, ridge: float) -> None:
    z, best, window, tables = state_of(2, 33, 4)
    f_z = torch.randn_like(z)
    for _ in range(6):
        z.zero_()  # so that the residual is f_z, and its change exactly nothing
        options = {**OPTIONS, "damping": 0.5, "regularization": ridge}
        anderson.step_(f_z, z, best, window, tables, **options)
        assert torch.equal(z, 0.5 * f_z)
    assert (tables.counters[:, Counter.STATUS] == dk.Status.RUNNING).all()


@pytest.mark.parametrize(
    ("dtype", "history_dtype", "off"),
    [
        (torch.float64, None, 0.0),
        (torch.float64, None, 1e-9),
        (torch.float32, None, 0.0),
        (torch.float32, None, 1e-5),
        (torch.float64, torch.bfloat16, 3e-3),
        (torch.float32, torch.bfloat16, 3e-3),
    ],
)
def test_a_dependent_change_is_left_out(
    backend: str, dtype: torch.dtype, history_dtype: torch.dtype | None, off: float
) -> None:
    """Residuals on one line, but for what is lost in rounding: only the newest change is used."""
    start, line, away = torch.randn(3, 1, 40, dtype=torch.float64).to(dtype).unbind()
    # Few digits, so that sums and multiples of them are exact.
    start, line = ((64 * x).round() / 64 for x in (start, line.clamp(-0.9, 0.9)))
    z, best, window, tables = state_of(1, 40, 4, dtype, history_dtype)
    residuals = [start + off * away, start + line, start + 3 * line]
    for r in residuals:
        z.zero_()  # so that the residual is what is passed as f(z)
        anderson.step_(r, z, best, window, tables, **{**OPTIONS, "regularization": 0.0})
    newest, r = 2 * line.double(), residuals[-1].double()
    gamma = (r @ newest.T) / (newest @ newest.T)
    # The newest image change is in slot 1.
    expected = r - gamma * window.image_changes[:, 1].double()
    assert_close(z, expected, coarser(dtype, history_dtype or dtype))


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
@pytest.mark.parametrize("history_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_of_any_size_take_the_same_steps(
    backend: str, dtype: torch.dtype, history_dtype: torch.dtype, scale: float
) -> None:
    """float32 dots of such residuals would vanish or overflow."""
    ends = []
    for size in (1.0, scale):
        torch.manual_seed(5)
        z, best, window, tables = state_of(2, 50, 3, dtype, history_dtype)
        z *= size
        for _ in range(6):
            f_z = (0.5 * z / size + torch.randn(2, 50).to(dtype)) * size
            before = z.clone()
            anderson.step_(f_z, z, best, window, tables, **{**OPTIONS, "damping": 0.5})
        ends.append(z / size)
        # The weights are of use.
        damped = before + 0.5 * (f_z - before)
        assert (z - damped).abs().max() > 0.1 * damped.abs().max()
    assert torch.equal(*ends)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_residuals_of_usual_size_are_stored_as_they_are(backend: str, dtype: torch.dtype) -> None:
    for size in (1e-7, 1.0, 1e7):
        z, best, window, tables = state_of(1, 50, 3, dtype)
        z.zero_()
        first, second = (size * torch.randn(1, 50, dtype=torch.float64).to(dtype) for _ in "ab")
        anderson.step_(first, z, best, window, tables, **OPTIONS)
        z.zero_()
        anderson.step_(second, z, best, window, tables, **OPTIONS)
        assert tables.norms[0, Norm.SCALE] == 1.0
        assert torch.equal(window.residual_changes[0, 0], (second - first)[0])


def test_rejection_empties_the_window(backend: str) -> None:
    """Back to the best iterate; from there the damped step, and nothing of before the rejection."""
    z, best, window, tables = state_of(1, 20, 4)
    iterates = []
    for size in (3.0, 1.0, 2.0):
        iterates.append(z.clone())
        anderson.step_(z + size, z, best, window, tables, **OPTIONS)
    anderson.step_(z + torch.nan, z, best, window, tables, **OPTIONS)
    assert torch.equal(z, iterates[1])
    assert tables.counters[0, :5].tolist() == [dk.Status.RUNNING, 0, 4, 1, 1]
    images = []
    for step in range(3):
        f_z = z + torch.randn_like(z)
        iterates, images = [*iterates, z[0].clone()], [*images, f_z[0]]
        anderson.step_(f_z, z, best, window, tables, **OPTIONS)
        expected = mixed(iterates[-step - 1 :], images, 1.0, OPTIONS["regularization"])
        torch.testing.assert_close(z[0], expected, rtol=1e-9, atol=1e-9)
    anderson.step_(z + 1e9, z, best, window, tables, **OPTIONS)
    assert tables.counters[0, Counter.STATUS] == dk.Status.DIVERGED


def test_frozen_sample_is_neither_read_nor_written(backend: str) -> None:
    z, best, window, tables = state_of(2, 6, 3)
    best.normal_()
    stored = (window.residual_changes, window.image_changes, window.last_residual, window.algebra)
    for table in (*stored, tables.record):
        table.normal_()
    tables.counters[1, :5] = torch.tensor([dk.Status.CONVERGED, 2, 5, 0, 3])
    tables.active.fill_(1)
    state = (z, best, *stored, tables.record, tables.counters)
    kept = [t[1].clone() for t in state]
    for _ in range(4):
        f_z = z + torch.randn_like(z)
        f_z[1] = torch.nan
        anderson.step_(f_z, z, best, window, tables, **OPTIONS)
        for now, before in zip(state, kept, strict=True):
            assert torch.equal(now[1], before)
    assert tables.active.item() == 1


def test_a_step_after_all_samples_stopped_changes_nothing(backend: str) -> None:
    """As the loop on a GPU takes it, which learns of the end one step late."""
    z, best, window, tables = state_of(3, 20, 4)
    gain = torch.linspace(-0.5, 0.5, 20, dtype=torch.float64)
    options = {**OPTIONS, "rtol": 1e-3}
    for _ in range(10):
        anderson.step_(gain * z + 1.0, z, best, window, tables, **options)
        running = (tables.counters[:, Counter.STATUS] == dk.Status.RUNNING).sum()
        assert tables.active.item() == running
    assert running == 0
    stored = (window.residual_changes, window.image_changes, window.last_residual, window.algebra)
    tensors = (z, best, *stored, tables.record, tables.counters)
    kept = [tensor.clone() for tensor in tensors]
    anderson.step_(torch.full_like(z, torch.nan), z, best, window, tables, **options)
    assert tables.active.item() == 0
    for now, before in zip(tensors, kept, strict=True):
        torch.testing.assert_close(now, before, rtol=0.0, atol=0.0, equal_nan=True)


def test_the_last_evaluation_is_only_judged(backend: str) -> None:
    z, best, window, tables = state_of(1, 30, 3, max_steps=3)
    for _ in range(2):
        anderson.step_(z + torch.randn_like(z), z, best, window, tables, **OPTIONS)
    before = z.clone()
    anderson.step_(z + 1e-3, z, best, window, tables, **OPTIONS)
    assert torch.equal(z, before)
    assert torch.equal(best, before)
    assert tables.counters[0, Counter.STATUS] == dk.Status.MAX_STEPS


def test_strided_f_is_taken_as_it_is(backend: str) -> None:
    expected = None
    for layout in ("contiguous", "columns", "padded rows", "expanded"):
        torch.manual_seed(1)
        z, best, window, tables = state_of(3, 40, 3)
        for _ in range(3):
            row = torch.randn(1, 40, dtype=torch.float64)
            f_z = {
                "contiguous": row.repeat(3, 1),
                "columns": row.repeat(3, 1).T.contiguous().T,
                "padded rows": torch.cat((row.repeat(3, 1), torch.zeros(3, 5)), dim=1)[:, :40],
                "expanded": row.expand(3, 40),
            }[layout]
            anderson.step_(f_z, z, best, window, tables, **OPTIONS)
        expected = z if expected is None else expected
        assert torch.equal(z, expected)


def test_changes_may_lie_apart(backend: str) -> None:
    """Rows with room between them, as an allocator may align them, give the same bits."""
    ends = []
    for apart in (0, 3):
        torch.manual_seed(1)
        z, best, window, tables = state_of(2, 37, 3)
        shape = (2, 2, 37 + apart)
        spaced = anderson.Window(
            torch.empty(shape, dtype=z.dtype)[:, :, :37],
            torch.empty(shape, dtype=z.dtype)[:, :, :37],
            window.last_residual,
            window.algebra,
            window.scratch,
        )
        for _ in range(5):
            anderson.step_(z + torch.randn_like(z), z, best, spaced, tables, **OPTIONS)
        ends.append(z)
    assert torch.equal(*ends)


@pytest.mark.parametrize(("batch", "dim"), [(0, 4), (3, 0), (0, 0)])
@pytest.mark.parametrize("history_length", [1, 3])
def test_empty_sizes(backend: str, batch: int, dim: int, history_length: int) -> None:
    z, best, window, tables = state_of(batch, dim, history_length)
    anderson.step_(z.clone(), z, best, window, tables, **OPTIONS)
    assert tables.active.item() == 0
    assert (tables.counters[:, Counter.STATUS] == dk.Status.CONVERGED).all()


def test_share_below_which_a_change_is_dependent() -> None:
    assert dependent_share(torch.float64, torch.float64) == 2.0**-52
    assert dependent_share(torch.float64, torch.float32) == 2.0**-46
    assert dependent_share(torch.float16, torch.float32) == 2.0**-23
    assert dependent_share(torch.float32, torch.bfloat16) == 2.0**-14


def test_native_rejects_wrong_arguments_by_name() -> None:
    z, best, window, tables = state_of(2, 6, 3)

    def step(**changed: Tensor) -> None:
        parts = {name: changed.get(name, getattr(window, name)) for name in window.__slots__}
        anderson.step_(z.clone(), z, best, anderson.Window(**parts), tables, **OPTIONS)

    changes = window.residual_changes
    for name, wrong, message in (
        ("residual_changes", changes[0], "residual_changes must be"),
        ("residual_changes", changes.mT.contiguous().mT, "must be dense in its last dimension"),
        ("image_changes", changes[:, :1], "image_changes must have size 2 in dimension 1, got 1"),
        ("image_changes", changes.float(), "image_changes must have dtype"),
        ("last_residual", z.float(), "last_residual must have dtype"),
        ("algebra", window.algebra[:, :, :3], "algebra must have size 4 in dimension 2, got 3"),
        ("scratch", window.scratch[:, :1], "scratch must have size 2 in dimension 1, got 1"),
    ):
        with pytest.raises(RuntimeError, match=message):
            step(**{name: wrong})
    tables.counters[1, Counter.COUNT] = -1
    with pytest.raises(RuntimeError, match="got -1 in column 1 of sample 1"):
        step()


def test_options_are_all_asked_for_and_no_others() -> None:
    z, best, window, tables = state_of(1, 3, 2)
    with pytest.raises(TypeError, match="ridge"):
        anderson.step_(z, z, best, window, tables, **OPTIONS, ridge=1.0)
    with pytest.raises(TypeError, match="damping"):
        anderson.step_(z, z, best, window, tables, rtol=0.0)


def elementwise_map(dim: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A nonlinear map that is itself exact about batches: nothing but elementwise functions."""
    gain = torch.linspace(-0.9, 0.95, dim).to(dtype)
    shift = torch.linspace(0.1, 1.0, dim).to(dtype)
    return lambda z: (gain * z + shift) / (1 + 0.1 * z * z)


def solve(f: Callable[[Tensor], Tensor], z0: Tensor, history: torch.dtype | None) -> list[Tensor]:
    solver = dk.Anderson(
        max_steps=9, rtol=1e-5, history_length=4, damping=0.9, history_dtype=history
    )
    solution = solver(f, z0)
    assert isinstance(solution.z, Tensor)
    return [solution.z, solution.trace.nan_to_num(-1.0), solution.steps, solution.status]


@pytest.mark.parametrize("dim", [7, 4096, 9001])
@pytest.mark.parametrize(("dtype", "history_dtype"), DTYPE_PAIRS)
def test_threads_and_neighbours_change_no_bit(
    set_threads: Callable[[int], None],
    dtype: torch.dtype,
    history_dtype: torch.dtype | None,
    dim: int,
) -> None:
    """Alone, among others, next to a solved sample and next to one that turns NaN."""
    f = elementwise_map(dim, dtype)
    z0 = torch.randn(5, dim).to(dtype)
    z0[1] = torch.nan
    for _ in range(300):
        z0[3] = f(z0[3])
    set_threads(1)
    together = solve(f, z0, history_dtype)
    assert together[3][1] == dk.Status.DIVERGED
    for threads in (2, 3, 5):
        set_threads(threads)
        for now, before in zip(solve(f, z0, history_dtype), together, strict=True):
            assert torch.equal(now.nan_to_num(-1.0), before.nan_to_num(-1.0))
    for sample in (0, 2, 4):
        alone = solve(f, z0[sample : sample + 1], history_dtype)
        for one, many in zip(alone, together, strict=True):
            assert torch.equal(one[0], many[sample])


def test_opcheck() -> None:
    z, best, window, tables = state_of(2, 7, 3)
    changes = (window.residual_changes, window.image_changes, window.last_residual)
    for tensor in (best, *changes, window.algebra, window.scratch):
        tensor.zero_()
    tables.active.zero_()
    record = (tables.record, tables.counters, tables.active, window.scratch)
    options = (1e-3, 0.0, 1.0, 1e-8, 0, 1e6)
    arguments = (torch.randn_like(z), z, best, *changes, window.algebra, *record, *options)
    torch.library.opcheck(OPS["anderson_step_"].overload, arguments)
