"""Every op once, on one set of inputs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deq_kernels.ops import anderson, broyden, damped, gmres, low_rank
from deq_kernels.ops.cells import Activation, NormKind
from python_tests.gpu.against_float64 import STOPPING
from python_tests.gpu.states import (
    CellState,
    StepState,
    anderson_state,
    broyden_state,
    cell_state,
    damped_state,
    factors,
    gmres_state,
    product_history,
)


@dataclass(frozen=True)
class Inputs:
    """What every op takes; those that write to their arguments write to these.

    Attributes:
        broyden_step: before a Broyden step.
        anderson_step: before an Anderson step.
        damped_step: before a damped step.
        gmres_step: at the end of a cycle of GMRES.
        graph_cell: before the solve of a cell over graphs.
        row_cell: before the solve of a cell whose rows are samples.
        directions: of an inverse in product form, as are `algebra` and `rank`.
        algebra: its table.
        rank: its factors per sample.
        u: left factors of an inverse in sum form.
        v: right factors of it.
        factor_rank: its pairs per sample.
        x: right-hand sides, [batch, columns, dim].
        s: steps to append, [batch, dim].
        y: changes of the residual, [batch, dim].
        w: the accumulated adjoint, [batch, dim].
    """

    broyden_step: StepState
    anderson_step: StepState
    damped_step: StepState
    gmres_step: StepState
    graph_cell: CellState
    row_cell: CellState
    directions: Tensor
    algebra: Tensor
    rank: Tensor
    u: Tensor
    v: Tensor
    factor_rank: Tensor
    x: Tensor
    s: Tensor
    y: Tensor
    w: Tensor

    @classmethod
    def draw(cls, dim: int, dtype: torch.dtype, history_dtype: torch.dtype) -> Inputs:
        """Random inputs on the CPU, with samples of every rank and every fate."""
        batch = 10
        directions, algebra, rank = product_history(batch, 5, dim, history_dtype)
        u, v, factor_rank = factors(batch, 4, dim, history_dtype)
        s = torch.randn(batch, dim)
        return cls(
            broyden_state(dim, dtype, history_dtype),
            anderson_state(dim, dtype, history_dtype),
            damped_state(dim, dtype),
            gmres_state(dim, dtype),
            # Part of a tile of rows; a few tiles; so many that blocks share them.
            cell_state(batch, {7: 7, 2049: 100}.get(dim, 300), 24, dtype),
            cell_state(batch, None, min(dim, 150), dtype),
            *(directions, algebra, rank, u, v, factor_rank),
            torch.randn(batch, 2, dim).to(dtype),
            s.to(dtype),
            (0.2 * torch.randn(batch, dim) - s).to(dtype),
            torch.randn(batch, dim).to(dtype),
        )

    def tensors(self) -> list[Tensor]:
        """All tensors, those of the steps included."""
        found: list[Tensor] = []
        for field in fields(self):
            value = getattr(self, field.name)
            parts = (
                [value]
                if isinstance(value, Tensor)
                else [getattr(value, part.name) for part in fields(value)]
            )
            found += [part for part in parts if part is not None]
        return found

    def to(self, device: torch.device) -> Inputs:
        """Copies on a device."""
        return self._map(partial(_copy, device=device))

    def samples(self, index: slice) -> Inputs:
        """Copies of some samples; `active` counts those of them that run."""

        def take(tensor: Tensor) -> Tensor:
            return tensor.clone() if tensor.shape == (1,) else tensor[index].clone()

        taken = self._map(take)
        steps = (taken.broyden_step, taken.anderson_step, taken.damped_step, taken.gmres_step)
        for step in (*steps, taken.graph_cell, taken.row_cell):
            step.active.fill_(int((step.counters[:, 0] == 0).sum()))
        return taken

    def copy_(self, other: Inputs) -> None:
        """Set every tensor to that of another set."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(theirs)

    def _map(self, change: Any) -> Inputs:
        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value)
            if value is None:
                return None
            parts = {part.name: apply(getattr(value, part.name)) for part in fields(value)}
            return replace(value, **parts)

        return replace(self, **{f.name: apply(getattr(self, f.name)) for f in fields(self)})


def _copy(tensor: Tensor, *, device: torch.device) -> Tensor:
    return tensor.to(device, copy=True)


def run(inputs: Inputs) -> list[Tensor]:
    """Call every op once; returns all that they wrote to or returned, on the inputs' device."""
    step = inputs.broyden_step
    options: dict[str, Any] = {**STOPPING, "damping": 0.9}
    broyden.step_(
        *(step.f_z, step.z, step.best_z, step.history(), step.tables),
        **options,
        gamma=0.8,
        finish_inverse=True,
    )
    mixed = inputs.anderson_step
    anderson.step_(
        *(mixed.f_z, mixed.z, mixed.best_z, mixed.window(), mixed.tables),
        **options,
        regularization=0.1,
    )
    other = inputs.damped_step
    damped.step_(*(other.f_z, other.z, other.best_z, other.tables, other.scratch()), **options)
    cycle = inputs.gmres_step
    cycles = gmres.Cycles.new(cycle.z, 4)
    for _ in range(2):  # the end of a cycle, and an image
        gmres.step_(cycle.f_z, cycle.z, cycle.best_z, cycles, cycle.tables, **STOPPING)
    for cell in (inputs.graph_cell, inputs.row_cell):
        kind = {"activation": Activation.TANH, "norm": NormKind.TWO, "accelerate": True}
        cell.iterate(**STOPPING, **kind, damping=0.9)
    outputs = []
    for transpose in (False, True):
        outputs.append(
            broyden.matvec(
                *(inputs.directions, inputs.algebra, inputs.rank, inputs.x),
                scale=-0.8,
                transpose=transpose,
            )
        )
    outputs.append(
        low_rank.append_(inputs.u, inputs.v, inputs.factor_rank, inputs.s, inputs.y, scale=-0.8)
    )
    for multiply in (low_rank.matvec, low_rank.rmatvec):
        outputs.append(multiply(inputs.u, inputs.v, inputs.factor_rank, inputs.x, scale=-0.8))
    held = inputs.u, inputs.factor_rank
    dots = low_rank.dots(*held, inputs.x)
    outputs += [dots, low_rank.combine(*held, dots, inputs.x, scale=-0.8)]
    outputs.append(low_rank.project_out_(*held, inputs.x))
    norms = torch.empty(len(inputs.w), 2, dtype=torch.float64, device=inputs.w.device)
    damped.neumann_step_(inputs.s, inputs.y, inputs.w, norms, damping=0.3)
    return [*outputs, norms, *inputs.tensors()]
