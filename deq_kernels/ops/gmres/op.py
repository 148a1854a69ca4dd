"""The op family `gmres`: one evaluation's part of restarted GMRES.

For w = f(w) with an affine f, r(w) = f(w) − w and M v = (r(w₀) − r(w₀ + t v)) / t, an evaluation is
at the end of a cycle, which is judged and starts the next one, or at w₀ + t v with the newest v of
the basis: then M v is orthogonalised against the basis, the column of the Hessenberg matrix is
rotated, and the residual of the minimiser predicted (docs/algebra.md, section 5; Saad and Schultz
1986, algorithm 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deq_kernels.ops import registry, step
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.gmres import arguments, reference
from deq_kernels.ops.gmres.table import table_size
from deq_kernels.ops.memory import new_history
from deq_kernels.ops.termination import Tables
from deq_kernels.ops.tiles import tile_count

_STEP = registry.define(
    "gmres_step_(Tensor f_z, Tensor(a!) z, Tensor(b!) best_z, Tensor(c!) basis, "
    "Tensor(d!) start, Tensor(e!) start_residual, Tensor(f!) algebra, Tensor(g!) record, "
    "Tensor(h!) counters, Tensor(i!) active, Tensor(j!) scratch, float rtol, float atol, "
    "int stall_steps, float divergence_factor) -> ()",
    reference=reference.step_,
    check=arguments.check_step,
    fake=registry.in_place_fake,
)


@dataclass(frozen=True, slots=True)
class Cycles:
    """What one GMRES solve stores; each sample is at its own place in its own cycle.

    `Counter.COUNT` is how many vectors the basis of a sample holds: z = w₀ + t v with v the newest
    of them, or, where it is 0, the end of a cycle.

    Attributes:
        basis: v_0, v_1, …, [batch, columns + 1, dim], in float32, or float64 for float64 states;
            rows are dense and may lie apart (`new_history`). The row after the newest vector holds
            the image that is orthogonalised.
        start: w₀, [batch, dim], in the dtype of the basis.
        start_residual: r(w₀), likewise.
        algebra: [batch, table_size(columns)] float64 (`deq_kernels.ops.gmres.table`).
        scratch: [batch, tiles + 1, columns + 4] float64, partial sums of a step; the tile is the
            device's (`deq_kernels.ops.tiles`).
    """

    basis: Tensor
    start: Tensor
    start_residual: Tensor
    algebra: Tensor
    scratch: Tensor

    @classmethod
    def new(cls, z: Tensor, columns: int) -> Cycles:
        """Room for cycles of `columns` products, at most, with states like z [batch, dim]."""
        batch, dim = z.shape
        accum, tiles = accumulate_dtype(z.dtype), tile_count(dim, z.device.type)
        wide = z.new_empty
        return cls(
            new_history(z, (batch, columns + 1, dim), accum),
            wide((batch, dim), dtype=accum),
            wide((batch, dim), dtype=accum),
            wide((batch, table_size(columns)), dtype=torch.float64),
            wide((batch, tiles + 1, arguments.SUMS + columns), dtype=torch.float64),
        )


def bind_step(
    z: Tensor,
    best_z: Tensor,
    cycles: Cycles,
    tables: Tables,
    *,
    rtol: float,
    atol: float,
    stall_steps: int,
    divergence_factor: float,
) -> Callable[[Tensor], None]:
    """`step_` as a function of f(z) alone, for a solver's loop; arguments as there."""
    vectors = (cycles.basis, cycles.start, cycles.start_residual, cycles.algebra)
    record = (tables.record, tables.counters, tables.active, cycles.scratch)
    arguments = (z, best_z, *vectors, *record, rtol, atol, stall_steps, divergence_factor)
    return step.bind_step(_STEP.call, z, arguments)


def step_(
    f_z: Tensor, z: Tensor, best_z: Tensor, cycles: Cycles, tables: Tables, **options: Any
) -> None:
    """Take in f(z) of every sample that still runs, and move z to where f is wanted next.

    At the end of a cycle f(z) is judged (`deq_kernels.ops.termination`), z kept where it is the
    best so far, and the next cycle begun: z ← w₀ + t v_0. Where only one evaluation is left, or
    1 / ‖r(z)‖ is not finite, z becomes f(z), and where the residual is rejected the best iterate,
    once.

    Elsewhere M v = (r(w₀) − r(z)) / t is made orthogonal to the basis, by classical Gram–Schmidt
    done twice, and the residual that the minimiser of the cycle would have goes into the trace. The
    cycle goes on, z ← w₀ + t v with a further v, unless there is no more room or nothing more in
    the space, the prediction meets the tolerance, or one evaluation is left: then z becomes the
    minimiser. An image that is not finite is left out and ends its cycle, once; the second time
    the sample has diverged. No input raises.

    Args:
        f_z: f(z), [batch, dim]; any strides.
        z: the iterates, [batch, dim], contiguous; updated.
        best_z: the best iterate of each sample, [batch, dim]; updated.
        cycles: basis and table of each sample; updated.
        tables: norms, counters, trace and the number of running samples, from `Tables.new`;
            updated.
        **options: those of `bind_step`, all of them:
            rtol, relative tolerance on ‖f(z) − z‖ against ‖f(z)‖;
            atol, absolute tolerance on ‖f(z) − z‖;
            stall_steps, evaluations without progress after which a sample has stalled, 0: never;
            divergence_factor, growth over the first residual at which a residual is rejected.

    Raises:
        RuntimeError: a tensor has the wrong shape, dtype or layout (compiled kernels name it).
        TypeError: an option is missing or unknown.
    """
    bind_step(z, best_z, cycles, tables, **options)(f_z)
