"""States in the middle of a solve, drawn on the CPU; NaN wherever nothing may be read."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from deq_kernels.ops import anderson, broyden, cells, damped
from deq_kernels.ops.termination import Counter, Norm, Status, Tables

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Dtypes of the state and of the stored directions: all that are allowed.
HISTORY_DTYPES = tuple(
    (state, history)
    for state in DTYPES
    for history in dict.fromkeys((state, torch.float32, torch.bfloat16))
)
MAX_STEPS = 12
# Enough for the cells below to meet any tolerance of the tests.
CELL_STEPS = 20
T = TypeVar("T")


@dataclass(frozen=True)
class StepState:
    """All tensors of a solver step; each method has the history that it has.

    Attributes:
        f_z: f(z), [batch, dim].
        z: the iterates, [batch, dim].
        best_z: the best iterates, [batch, dim].
        record: norms and trace, as in `Tables`.
        counters: as in `Tables`.
        active: as in `Tables`.
        directions: as in `broyden.History`.
        algebra: as in `broyden.History` or in `anderson.Window`.
        residual_changes: as in `anderson.Window`.
        image_changes: as in `anderson.Window`.
        last_residual: as in `anderson.Window`.
    """

    f_z: Tensor
    z: Tensor
    best_z: Tensor
    record: Tensor
    counters: Tensor
    active: Tensor
    directions: Tensor | None = None
    algebra: Tensor | None = None
    residual_changes: Tensor | None = None
    image_changes: Tensor | None = None
    last_residual: Tensor | None = None

    @property
    def tables(self) -> Tables:
        return Tables(self.record, self.counters, self.active)

    def history(self) -> broyden.History:
        """The history with new scratch of its own."""
        assert self.directions is not None
        assert self.algebra is not None
        # Scratch depends on the capacity alone.
        fresh = broyden.History.new(self.z, self.directions.shape[1] - 1, None)
        return replace(fresh, directions=self.directions, algebra=self.algebra)

    def window(self) -> anderson.Window:
        """The window with new scratch of its own."""
        assert self.residual_changes is not None
        assert self.image_changes is not None
        assert self.last_residual is not None
        assert self.algebra is not None
        # Scratch depends on the capacity alone.
        fresh = anderson.Window.new(self.z, self.residual_changes.shape[1] + 1, None)
        return replace(
            fresh,
            residual_changes=self.residual_changes,
            image_changes=self.image_changes,
            last_residual=self.last_residual,
            algebra=self.algebra,
        )

    def scratch(self) -> Tensor:
        """New scratch of a damped step."""
        return damped.new_scratch(self.z)


@dataclass(frozen=True)
class CellState:
    """A structured cell before its solve; every sample has the same number of rows.

    Attributes:
        weight: V, [samples, n, n], the same for each.
        neighbours: columns of the entries of S within their sample, `DEGREE` for each row,
            [samples, rows, DEGREE]; None: no S, and each row is a sample.
        values: the entries of S, [samples, rows, DEGREE], or None.
        bias: b, [samples, rows, n], or [samples, n].
        scale: c, as b.
        z: the start, as b.
        record: as in `Tables`.
        counters: as in `Tables`.
        active: as in `Tables`.
    """

    weight: Tensor
    neighbours: Tensor | None
    values: Tensor | None
    bias: Tensor
    scale: Tensor
    z: Tensor
    record: Tensor
    counters: Tensor
    active: Tensor

    @property
    def tables(self) -> Tables:
        return Tables(self.record, self.counters, self.active)

    def arguments(self) -> dict[str, Tensor]:
        """S as the op takes it, and the scale."""
        flat = {"scale": self.scale.flatten(0, -2)}
        if self.neighbours is None or self.values is None:
            return flat
        samples, rows, degree = self.neighbours.shape
        options = {"device": self.z.device, "dtype": torch.int64}
        starts = torch.arange(samples + 1, **options) * rows
        return flat | {
            "crow": torch.arange(samples * rows + 1, **options) * degree,
            "col": (self.neighbours + starts[:-1, None, None]).flatten(),
            "values": self.values.flatten(),
            "sample_ptr": starts,
        }

    def iterate(self, arguments: dict[str, Tensor] | None = None, **options: Any) -> None:
        """Solve, in place; `arguments` spares making them."""
        cells.iterate_(
            self.z.flatten(0, -2),
            self.tables,
            self.weight[0],
            self.bias.flatten(0, -2),
            **(self.arguments() if arguments is None else arguments),
            **options,
        )


DEGREE = 3


def cell_state(samples: int, rows: int | None, dim: int, dtype: torch.dtype) -> CellState:
    """Samples of `rows` nodes, or of one row without S; one is not finite and one does not run.

    f contracts by 0.2 where it is finite, if φ has slopes up to 1.
    """
    shape = (samples, dim) if rows is None else (samples, rows, dim)
    weight = torch.randn(dim, dim)
    weight *= 0.2 / weight.abs().sum(1, keepdim=True)
    neighbours = values = None
    if rows is not None:
        neighbours = torch.randint(max(rows, 1), (samples, rows, DEGREE))
        values = (torch.rand(samples, rows, DEGREE) * 2 - 1).div(DEGREE).to(dtype)
    bias = torch.randn(shape)
    bias[1:2] = torch.nan
    tables = Tables.new(samples, CELL_STEPS, bias.device)
    if samples > 2:
        tables.counters[2, Counter.STATUS] = Status.STALLED
        tables.active.sub_(1)
    return CellState(
        weight.to(dtype).repeat(samples, 1, 1),
        neighbours,
        values,
        bias.to(dtype),
        torch.rand(shape).to(dtype),
        torch.randn(shape).to(dtype),
        *(tables.record, tables.counters, tables.active),
    )


def solved_rows(rows: int, dim: int) -> CellState:
    """Rows that start at their solution z = V z + b, whose residual is a rounding of b to float32.

    All terms have one sign: a product that is a single chain of them would round much more.
    """
    weight = torch.rand(dim, dim)
    weight *= 0.9 / weight.sum(1, keepdim=True)
    z = 1 + torch.rand(rows, dim)
    bias = (z.double() - z.double() @ weight.double().T).float()
    tables = Tables.new(rows, 1, z.device)
    return CellState(
        weight.repeat(rows, 1, 1),
        None,
        None,
        *(bias, torch.ones_like(z), z, tables.record, tables.counters, tables.active),
    )


def copy_to(state: T, device: torch.device) -> T:
    """The same tensors on a device, the directions in rows that begin at multiples of 16 bytes."""
    copies = {}
    for field in fields(state):  # type: ignore[arg-type]
        tensor = getattr(state, field.name)
        if isinstance(tensor, Tensor):
            copies[field.name] = tensor.detach().clone().to(device)
    return replace(state, **copies)  # type: ignore[type-var]


def in_float64(state: StepState) -> StepState:
    """The same numbers in float64, where the reference makes no rounding errors to speak of."""
    copied = copy_to(state, torch.device("cpu"))
    names = ("f_z", "z", "best_z", "directions")
    names += ("residual_changes", "image_changes", "last_residual")
    wide = {name: t.double() for name in names if (t := getattr(copied, name)) is not None}
    return replace(copied, **wide)


# What can become of a sample in one step; every state holds each once, in this order.
FATES = (
    "first evaluation",
    "advances",
    "advances, no new best",
    "full history",
    "converges",
    "last evaluation",
    "frozen",
    "not finite, goes back",
    "not finite again, diverges",
    "stalls",
)
STALL_STEPS = 4
RTOL = 1e-3
DIVERGENCE_FACTOR = 1e3


def damped_state(dim: int, dtype: torch.dtype) -> StepState:
    """A state with one sample for every fate but those that need a history."""
    batch = len(FATES)
    z = torch.randn(batch, dim).to(dtype)
    f_z = (z.double() + 0.5 * torch.randn(batch, dim)).to(dtype)
    best_z = torch.randn(batch, dim).to(dtype)
    tables = Tables.new(batch, MAX_STEPS, z.device)
    counters, norms = tables.counters, tables.norms
    residual = (f_z.double() - z.double()).norm(dim=1)
    marks = (2.0 * residual, 3.0 * residual, 2.5 * residual)
    norms[:, : Norm.PROGRESS + 1] = torch.stack(marks, dim=1)
    counters[:, Counter.STEPS] = 4
    counters[:, Counter.PROGRESS_STEP] = 3
    row = FATES.index
    counters[row("first evaluation")] = 0
    tables.record[row("first evaluation")] = torch.nan
    norms[row("advances, no new best"), Norm.BEST] = 0.5 * residual[row("advances, no new best")]
    f_z[row("converges")] = z[row("converges")]
    counters[row("last evaluation"), Counter.STEPS] = MAX_STEPS - 1
    counters[row("frozen"), Counter.STATUS] = Status.CONVERGED
    f_z[row("frozen")] = torch.nan
    for name in ("not finite, goes back", "not finite again, diverges"):
        f_z[row(name), dim // 2 :] = torch.inf
    counters[row("not finite again, diverges"), Counter.REJECTIONS] = 1
    norms[row("stalls"), Norm.BEST] = 0.5 * residual[row("stalls")]
    counters[row("stalls"), Counter.PROGRESS_STEP] = 4 - STALL_STEPS
    tables.active.fill_(batch - 1)
    return StepState(f_z, z, best_z, *(tables.record, tables.counters, tables.active))


def broyden_state(
    dim: int,
    dtype: torch.dtype,
    history_dtype: torch.dtype,
    *,
    capacity: int = 5,
    counts: tuple[int, ...] | None = None,
    damping: float = 0.9,
    scale: float = 1.0,
) -> StepState:
    """A state with one sample for every fate, between two steps of its solve.

    Every sample has grown a little since its newest direction began, but not so much that a line
    search would object.

    Args:
        dim: elements per sample.
        dtype: dtype of the state.
        history_dtype: dtype of the directions.
        capacity: room for directions.
        counts: directions stored by the samples in turn; all numbers from 1 to capacity - 1 by
            default. A first evaluation has none, and a full history has `capacity`.
        damping: step length along the stored directions.
        scale: what the directions are stored with.
    """
    state = damped_state(dim, dtype)
    norms = state.tables.norms
    running = state.counters[:, Counter.STEPS] > 0
    norms[running, Norm.BASE] = norms[running, Norm.FIRST] / 3.0
    norms[running, Norm.GAMMA], norms[running, Norm.SCALE] = 0.8, scale
    batch = len(FATES)
    counts = counts or tuple(range(1, capacity))
    count = torch.tensor([counts[sample % len(counts)] for sample in range(batch)])
    count[FATES.index("first evaluation")] = 0
    count[FATES.index("full history")] = capacity
    state.counters[:, Counter.COUNT] = count

    directions = torch.randn(batch, capacity, dim).to(history_dtype)
    index = torch.arange(capacity)
    directions[index >= count[:, None]] = torch.nan
    rows = torch.where((index < count[:, None])[:, :, None], directions.double(), 0.0)
    gram = rows @ rows.mT
    # The newest direction has a step length, but no Gram column and no weight yet.
    finished = index < count[:, None] - 1
    weight = torch.where(finished, 1.0 / gram.diagonal(dim1=1, dim2=2), torch.nan)
    gram[~(finished[:, :, None] & finished[:, None, :])] = torch.nan
    step = torch.full_like(weight, damping).masked_fill(index >= count[:, None], torch.nan)
    algebra = torch.cat((gram, step[:, :, None], weight[:, :, None]), dim=2)
    return replace(state, directions=directions, algebra=algebra)


def anderson_state(
    dim: int,
    dtype: torch.dtype,
    history_dtype: torch.dtype,
    *,
    capacity: int = 4,
    seen: tuple[int, ...] | None = None,
    scale: float = 1.0,
) -> StepState:
    """A state with one sample for every fate, between two steps of its solve.

    Args:
        dim: elements per sample.
        dtype: dtype of the state.
        history_dtype: dtype of the changes.
        capacity: room for changes, one less than the window takes evaluations.
        seen: evaluations seen by the samples in turn since their windows were empty; by default
            such that rings are part full, full and gone round. A first evaluation has seen none.
        scale: what the changes of the residual are stored with.
    """
    state = damped_state(dim, dtype)
    state.tables.norms[state.counters[:, Counter.STEPS] > 0, Norm.SCALE] = scale
    batch = len(FATES)
    seen = seen or tuple(range(1, 2 * capacity + 2))
    count = torch.tensor([seen[sample % len(seen)] for sample in range(batch)])
    count[FATES.index("first evaluation")] = 0
    state.counters[:, Counter.COUNT] = count

    slot = torch.arange(capacity)
    stored = slot < count[:, None]
    newest = slot == (count[:, None] - 1) % max(1, capacity)
    # The newest change of the residual comes with the evaluation at hand.
    complete = stored & ~newest
    residual_changes = (scale * torch.randn(batch, capacity, dim)).to(history_dtype)
    residual_changes[~complete] = torch.nan
    image_changes = torch.randn(batch, capacity, dim).to(history_dtype)
    image_changes[~stored] = torch.nan
    last_residual = (0.6 * torch.randn(batch, dim)).to(dtype)
    last_residual[count == 0] = torch.nan
    rows = residual_changes.double()
    algebra = torch.cat((rows @ rows.mT, torch.full((batch, capacity, capacity), torch.nan)), dim=2)
    return replace(
        state,
        algebra=algebra.double(),
        residual_changes=residual_changes,
        image_changes=image_changes,
        last_residual=last_residual,
    )


def gmres_state(dim: int, dtype: torch.dtype) -> StepState:
    """A state whose samples are all at the end of a cycle of GMRES, with one for every fate."""
    state = damped_state(dim, dtype)
    state.counters[:, Counter.COUNT] = 0
    return state


def product_history(
    batch: int, capacity: int, dim: int, dtype: torch.dtype, *, ranks: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Directions, table and rank of finished inverses, every sample of another rank.

    Args:
        batch: number of samples.
        capacity: room for directions.
        dim: elements per sample.
        dtype: dtype of the directions.
        ranks: ranks of the samples in turn; all from 0 to capacity - 1 by default.
    """
    ranks = ranks or tuple(range(capacity))
    rank = torch.tensor([ranks[sample % len(ranks)] for sample in range(batch)], dtype=torch.int64)
    directions = torch.randn(batch, capacity, dim).to(dtype)
    index = torch.arange(capacity)
    # A rank of 0 is had without any direction.
    stored = torch.where(rank > 0, rank + 1, 0)
    directions[index >= stored[:, None]] = torch.nan
    rows = torch.where((index < stored[:, None])[:, :, None], directions.double(), 0.0)
    gram = rows @ rows.mT
    finished = index < rank[:, None]
    weight = torch.where(finished, 1.0 / gram.diagonal(dim1=1, dim2=2), torch.nan)
    # Row j of the table holds what directions i <= j + 1 need of it.
    known = finished[:, :, None] & finished[:, None, :]
    gram[~known] = torch.nan
    step = torch.full_like(weight, 0.8).masked_fill(~finished, torch.nan)
    return directions, torch.cat((gram, step[:, :, None], weight[:, :, None]), dim=2), rank


def factors(
    batch: int, length: int, dim: int, dtype: torch.dtype, *, ranks: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum-form factors u and v and their rank, every sample of another one; NaN beyond it."""
    ranks = ranks or tuple(range(length + 1))
    rank = torch.tensor([ranks[sample % len(ranks)] for sample in range(batch)], dtype=torch.int64)
    u, v = (torch.randn(batch, length, dim) / max(1, dim) ** 0.5 for _ in range(2))
    unused = torch.arange(length) >= rank[:, None]
    u[unused], v[unused] = torch.nan, torch.nan
    return u.to(dtype), v.to(dtype), rank


def with_odd_rows(tensor: Tensor) -> Tensor:
    """The same numbers in rows that begin at no multiple of 16 bytes, NaN between them."""
    *outer, dim = tensor.shape
    room = tensor.new_full((*outer, dim + 3), torch.nan)
    view = room[..., 1 : dim + 1]
    view.copy_(tensor)
    return view


def with_aligned_rows(tensor: Tensor) -> Tensor:
    """The same numbers in rows that begin at multiples of 16 bytes, NaN between them."""
    *outer, dim = tensor.shape
    per_slot = 16 // tensor.element_size()
    room = tensor.new_full((*outer, -(-dim // per_slot) * per_slot + per_slot), torch.nan)
    view = room[..., :dim]
    view.copy_(tensor)
    return view
