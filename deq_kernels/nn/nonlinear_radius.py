"""The power method applied to f itself instead of its Jacobian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deq_kernels.nn.flat_states import flat_map, row_dot
from deq_kernels.nn.power_method import Estimate, SpectralRadius, repeat
from deq_kernels.nn.radius import check_power_options
from deq_kernels.solvers import State, Structure


def nonlinear_spectral_radius(
    f: Callable[..., State], start: State, *, max_steps: int = 100, rtol: float = 1e-3
) -> SpectralRadius:
    """ρ = ‖f(v)‖₂ at the end of v ← f(v) / ‖f(v)‖₂, per sample (SHINE, Table E.1).

    SHINE's section E.3 says no more than "the power-method applied to a nonlinear function"; this
    is that method word for word, as Bungert et al. 2021 ("Nonlinear Power Method for Computing
    Eigenvectors of Proximal Operators and Neural Networks") write it. It gives the table's
    magnitude: behind a GroupNorm ‖f(v)‖ is about √d for any v, and √d = 247.9 for the state of the
    paper's model, whose entries are 193.7 to 234.2. For a linear f the result is the modulus of the
    leading eigenvalue. For any other it measures f on the unit sphere, not around z*: a value
    above 1 does not mean that the iteration diverges. `spectral_radius` answers that.

    A sample has converged when ‖f(v) − θv‖ ≤ rtol ‖f(v)‖ with θ = ⟨v, f(v)⟩; `eigenvalue` is that
    θ. Nothing is recorded for autograd.

    Args:
        f: map of states to states, evaluated once per step.
        start: the first v, scaled to length 1 here: a tensor [B, ...] or a tuple of tensors, for
            example random. The scale is that of one sample's whole state, all tensors together.
        max_steps: largest number of evaluations.
        rtol: see above.

    Raises:
        TypeError: start or f(v) has a wrong structure, dtype or device.
        ValueError: an option is out of its range, f(v) has a wrong shape, or start is zero or not
            finite in a sample.
    """
    check_power_options(max_steps, rtol)
    structure = Structure.of(start, "start")
    with torch.inference_mode(False), torch.no_grad():
        v = structure.flatten(start).clone(memory_format=torch.contiguous_format)
        lengths = row_dot(v, v).sqrt()
        if not bool((lengths.isfinite() & (lengths > 0)).all()):
            raise ValueError(
                "start must be finite and not zero in every sample, for it gives the direction to "
                "begin with; use random numbers."
            )
        flat_f = flat_map(f, structure)
        return repeat(flat_f, _read, v, structure, length=1.0, max_steps=max_steps, rtol=rtol)


def _read(v: Tensor, product: Tensor, norm: Tensor) -> Estimate:
    """‖f(v)‖, and how far f(v) is from a multiple of v."""
    theta = row_dot(v, product) / row_dot(v, v)
    difference = product.double() - theta[:, None] * v
    residual = row_dot(difference, difference).sqrt() / norm
    return Estimate(norm, theta, torch.zeros_like(theta), residual)
