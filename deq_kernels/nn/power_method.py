"""The loop of the power method, linear or not, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deq_kernels.nn.flat_states import row_dot
from deq_kernels.solvers import State, Structure


@dataclass(frozen=True, slots=True)
class SpectralRadius:
    """Outcome of a power method; everything is per sample and detached.

    Attributes:
        radius: the estimate, [B] float64; NaN where a product was not finite.
        eigenvalue: λ with |λ| = radius, [B] complex128; of a conjugate pair, the one with the
            positive imaginary part; NaN for a sample without one.
        residual: what was left of the eigenvalue equation, relative to the product, [B] float64.
        steps: products taken, [B] int64.
        converged: whether the residual met `rtol`, or the product vanished, [B] bool.
        vector: the last v, in the structure of z.
    """

    radius: Tensor
    eigenvalue: Tensor
    residual: Tensor
    steps: Tensor
    converged: Tensor
    vector: State


class Estimate(NamedTuple):
    """An eigenvalue per sample: its modulus, its two parts and its relative residual, all [B]."""

    modulus: Tensor
    real: Tensor
    imaginary: Tensor
    residual: Tensor

    def where(self, chosen: Tensor, other: Estimate) -> Estimate:
        """This one where `chosen`, the other elsewhere."""
        return Estimate(*map(torch.where, (chosen,) * 4, self, other))


def repeat(
    apply: Callable[[Tensor], Tensor],
    read: Callable[[Tensor, Tensor, Tensor], Estimate],
    v: Tensor,
    structure: Structure,
    *,
    length: float,
    max_steps: int,
    rtol: float,
) -> SpectralRadius:
    """v ← length · apply(v) / ‖apply(v)‖, each sample until its estimate holds to rtol.

    Args:
        apply: the map [B, d] to [B, d].
        read: the estimate from v, apply(v) and ‖apply(v)‖₂.
        v: the first vector, of any length.
        structure: that of the state.
        length: ‖v‖₂ from then on.
        max_steps: largest number of products.
        rtol: bound on the estimate's residual.
    """
    batch = structure.batch
    nothing = torch.full((batch,), torch.nan, dtype=torch.float64, device=v.device)
    best = Estimate(nothing, nothing, nothing, nothing)
    running = torch.ones(batch, dtype=torch.bool, device=v.device)
    converged = torch.zeros_like(running)
    steps = torch.zeros(batch, dtype=torch.int64, device=v.device)
    v = _rescaled(v, row_dot(v, v).sqrt(), length)
    for _ in range(max_steps):
        if not running.any():
            break
        product = apply(v)
        norm = row_dot(product, product).sqrt()
        finite, vanished = norm.isfinite(), norm == 0.0
        estimate = read(v, product, norm)
        estimate = Estimate(*(torch.where(vanished, 0.0, part) for part in estimate))
        estimate = Estimate(*(torch.where(finite, part, torch.nan) for part in estimate))
        best = estimate.where(running, best)
        steps += running
        converged |= running & (estimate.residual <= rtol)
        running = running & finite & ~converged
        v = torch.where(running[:, None], _rescaled(product, norm, length), v)
    eigenvalue = torch.complex(best.real, best.imaginary)
    return SpectralRadius(
        best.modulus, eigenvalue, best.residual, steps, converged, structure.unflatten(v)
    )


def _rescaled(x: Tensor, norm: Tensor, length: float) -> Tensor:
    """x with rows of the given length, rounded to its dtype once."""
    return (x.double() * (length / norm)[:, None]).to(x.dtype)
