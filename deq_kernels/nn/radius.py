"""The spectral radius of ∂f/∂z by the power method: below 1, plain iteration converges near z*."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from deq_kernels.nn.flat_states import record, row_dot, vector_jacobian_product
from deq_kernels.nn.power_method import Estimate, SpectralRadius, repeat
from deq_kernels.options import check_count, check_number
from deq_kernels.solvers import State, Structure


def spectral_radius(
    f: Callable[..., State],
    z: State,
    *,
    max_steps: int = 100,
    rtol: float = 1e-3,
    generator: torch.Generator | None = None,
) -> SpectralRadius:
    """ρ(J) of each sample with J = ∂f/∂z at z: the power method on Jᵀ, one VJP per step.

    v ← Jᵀv / ‖Jᵀv‖ from a random v (Jᵀ has the eigenvalues of J). Two ways to read the eigenvalue
    off are tried at every step, and a sample stops at the first that holds to `rtol`:

    1. the Rayleigh quotient θ = ⟨v, Jᵀv⟩ / ⟨v, v⟩, when ‖Jᵀv − θv‖ ≤ rtol ‖Jᵀv‖;
    2. the larger root of λ² = αλ + β, when ‖(Jᵀ)²u − αJᵀu − βu‖ ≤ rtol ‖(Jᵀ)²u‖ for the u of the
       step before, with α and β from least squares. This covers the pairs λ, λ̄ and λ, −λ, for
       which the Rayleigh quotient never settles (Wilkinson 1965, "The Algebraic Eigenvalue
       Problem", chapter 9).

    Both test a residual. For a J far from normal an eigenvalue can lie farther from the estimate
    than `rtol`. The closer the leading moduli, the more steps: many eigenvalues of nearly one
    modulus end with `converged` False. The radius is then the geometric mean of ‖Jᵀv‖ / ‖v‖ over
    the later half of the steps, which tends to ρ for every spectrum, if slowly: expect some
    percent. Half precision reaches an rtol of about 1e-3 (float16) or 1e-2 (bfloat16).

    Nothing is recorded for autograd. f may evaluate its samples together, but must not mix them.

    Args:
        f: map of states to states, evaluated once.
        z: where J is taken, usually the solution, a tensor [B, ...] or a tuple of tensors.
        max_steps: largest number of VJPs.
        rtol: see above.
        generator: draws the first v, on the device of z; None for torch's global one. The same
            generator state, shape and device give the same v.

    Raises:
        TypeError: z or f(z) has a wrong structure, dtype or device.
        ValueError: an option is out of its range, or f(z) has a wrong shape.
    """
    check_power_options(max_steps, rtol)
    structure = Structure.of(z, "z")
    with torch.inference_mode(False):
        with torch.enable_grad():
            leaf, f_z = record(f, z, structure)
        with torch.no_grad():
            v = torch.randn(
                leaf.shape, generator=generator, dtype=structure.dtype, device=structure.device
            )
            # J is linear, and entries of about 1 keep half precision in range.
            length = math.sqrt(structure.dim)
            reader = _Reader(length, rtol)
            found = repeat(
                lambda w: vector_jacobian_product(f_z, leaf, w, create_graph=False),
                reader,
                v,
                structure,
                length=length,
                max_steps=max_steps,
                rtol=rtol,
            )
            return _with_mean_growth(found, reader.growths)


def check_power_options(max_steps: int, rtol: float) -> None:
    """Raise ValueError unless the options of a power method are in range."""
    check_count("max_steps", max_steps)
    check_number("rtol", rtol, lambda x: 0 <= x < 1, "at least 0 and below 1")


class _Reader:
    """Reads an eigenvalue off v and Jᵀv, remembering the vector before."""

    def __init__(self, length: float, rtol: float) -> None:
        self.length = length
        self.rtol = rtol
        self.before: tuple[Tensor, Tensor] | None = None
        """u and g with Jᵀu = g v for the next v."""
        self.growths: list[Tensor] = []
        """g of every step."""

    def __call__(self, v: Tensor, product: Tensor, norm: Tensor) -> Estimate:
        self.growths.append(norm / self.length)
        before, self.before = self.before, (v, self.growths[-1])
        vv, vw = row_dot(v, v), row_dot(v, product)
        theta = vw / vv
        residual = _distance(product, (theta, v)) / norm
        single = Estimate(theta.abs(), theta, torch.zeros_like(theta), residual)
        if before is None:
            return single
        u, growth = before
        # product ≈ α v + β u
        uu, uv, uw = row_dot(u, u), row_dot(u, v), row_dot(u, product)
        determinant = uu * vv - uv * uv
        alpha = (uu * vw - uv * uw) / determinant
        beta = (vv * uw - uv * vw) / determinant
        residual = _distance(product, (alpha, v), (beta, u)) / norm
        pair = Estimate(*_larger_root(alpha, growth * beta), residual)
        # Vectors this close to parallel differ by rounding, or by nothing.
        sine = 16.0 * torch.finfo(v.dtype).eps
        parallel = ~(determinant > sine * sine * uu * vv)
        return single.where(parallel | (single.residual <= self.rtol), pair)


def _with_mean_growth(found: SpectralRadius, growths: list[Tensor]) -> SpectralRadius:
    """Where no eigenvalue settled, the geometric mean of ‖Jᵀv‖ / ‖v‖ over the later half.

    Each single estimate swings between the moduli then, and farther. The few logarithms are taken
    one by one, because torch rounds them differently in long and in short batches.
    """
    swinging = (~found.converged & found.radius.isfinite()).nonzero().flatten().tolist()
    if not swinging:
        return found
    radius, eigenvalue = found.radius.clone(), found.eigenvalue.clone()
    later = torch.stack(growths[len(growths) // 2 :], dim=1)
    for sample in swinging:
        logarithms = [math.log(growth) for growth in later[sample].tolist()]
        radius[sample] = math.exp(math.fsum(logarithms) / len(logarithms))
        eigenvalue[sample] = math.nan
    return replace(found, radius=radius, eigenvalue=eigenvalue)


def _distance(x: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """‖x − Σ c y‖₂ of each sample, for c [B] and y [B, d]."""
    difference = x.double()
    for coefficient, y in terms:
        difference = difference - coefficient[:, None] * y
    return row_dot(difference, difference).sqrt()


def _larger_root(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Modulus, real and imaginary part of the root of λ² = αλ + β that has the larger modulus.

    In real arithmetic, whose bits do not depend on how many samples there are.
    """
    half = 0.5 * alpha
    discriminant = half * half + beta
    root = discriminant.abs().sqrt()
    is_real = discriminant >= 0
    real = torch.where(is_real, half + torch.where(half >= 0, root, -root), half)
    imaginary = torch.where(is_real, 0.0, root)
    return (real * real + imaginary * imaginary).sqrt(), real, imaginary
