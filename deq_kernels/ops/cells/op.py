"""The op family `cells`: the damped fixed-point iteration of a structured cell, all of it.

    f(z) = φ(S (c ⊙ z) Vᵀ + b),    z ← z + λ (f(z) − z)

Source: docs/algebra.md, section 3.
"""

from __future__ import annotations

from torch import Tensor

from deq_kernels.ops import registry
from deq_kernels.ops.cells import arguments, reference
from deq_kernels.ops.cells.activations import Activation
from deq_kernels.ops.cells.norms import NormKind
from deq_kernels.ops.termination import Tables

_ITERATE = registry.define(
    "cells_iterate_(Tensor weight, Tensor? crow, Tensor? col, Tensor? values, "
    "Tensor? sample_ptr, Tensor bias, Tensor? scale, Tensor(a!) z, Tensor(b!) record, "
    "Tensor(c!) counters, Tensor(d!) active, int activation, float rtol, float atol, "
    "float damping, int norm, int stall_steps, float divergence_factor, bool fixed_steps, "
    "bool accelerate) -> ()",
    reference=reference.iterate_,
    check=arguments.check_iterate,
    fake=registry.in_place_fake,
)


def iterate_(
    z: Tensor,
    tables: Tables,
    weight: Tensor,
    bias: Tensor,
    *,
    scale: Tensor | None = None,
    crow: Tensor | None = None,
    col: Tensor | None = None,
    values: Tensor | None = None,
    sample_ptr: Tensor | None = None,
    activation: Activation,
    rtol: float,
    atol: float,
    damping: float,
    norm: NormKind,
    stall_steps: int,
    divergence_factor: float,
    fixed_steps: bool = False,
    accelerate: bool = False,
) -> None:
    """Iterate z ← z + λ (φ(S (c ⊙ z) Vᵀ + b) − z) until every sample has stopped, by itself.

    A sample is a run of rows of z, which S does not connect with any other, or one row. States of
    16 bits are iterated in float32 and rounded once, at the end. Triton has a kernel for samples of
    one row; runs of rows take the reference there.

    Args:
        z: the start, [N, n], contiguous; receives of each sample the evaluated iterate with the
            smallest residual.
        tables: norms, counters, trace and the number of running samples, from `Tables.new`, with
            room for as many steps as may be taken; updated. Samples that do not run are left alone.
        weight: V, [n, n]; any strides.
        bias: b, [N, n]; any strides.
        scale: c, [N, n]; any strides. None: ones.
        crow: S in CSR, where each row's entries start, [N + 1] int64. None, as col and values: the
            identity.
        col: column of each entry of S, [nnz] int64, within the sample of its row. Entries of a
            row may have any order, and repeat.
        values: the entries of S, [nnz].
        sample_ptr: where each sample's rows start, ascending from 0 to N, [G + 1] int64. None,
            possible without S: each row is a sample.
        activation: φ.
        rtol: relative tolerance on ‖f(z) − z‖ against ‖f(z)‖.
        atol: absolute tolerance on ‖f(z) − z‖.
        damping: λ.
        norm: the norm of the tolerances, of the trace and of the other residuals in the tables. By
            rows, a sample converges when each of its rows meets the tolerances for itself, or
            changes by no more than the smallest normal number (2⁻⁵⁰⁰ in float64); and it goes on
            while the largest residual among the rows that do not yet falls.
        stall_steps: evaluations without progress after which a sample has stalled; 0: never.
        divergence_factor: growth over the first residual at which a sample has diverged.
        fixed_steps: take exactly as many steps as the tables have room for, and leave in z the
            last iterate, which is not evaluated. Status and residual are then those of the one
            before: `CONVERGED`, `MAX_STEPS`, or `DIVERGED` where it is not finite.
        accelerate: look back on the steps before by conjugate residuals (CROP, which combines three
            of them: docs/algebra.md, section 3). A step that does not lower the residual is taken
            back: the iterate before is evaluated again, and followed by its damped step. Not
            together with `fixed_steps`. A CPU may then compute evaluations that neither stop a
            sample nor are returned by products in bfloat16.

    weight, bias, scale and values have the dtype of z.

    Raises:
        RuntimeError: a tensor has the wrong shape, dtype or layout, or S or sample_ptr is not what
            is described above.
    """
    _ITERATE.call(
        weight,
        crow,
        col,
        values,
        sample_ptr,
        _dense_rows(bias),
        None if scale is None else _dense_rows(scale),
        z,
        tables.record,
        tables.counters,
        tables.active,
        int(activation),
        rtol,
        atol,
        damping,
        int(norm),
        stall_steps,
        divergence_factor,
        fixed_steps,
        accelerate,
    )


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
