"""Numbers that have the same bits everywhere, maps that keep it so, and what is kept of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

import deq_kernels as dk

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
DIGITS = 16
"""Hexadecimal digits kept of each SHA-256."""


def pattern(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Multiples of scale / 509 within [−scale, scale], of no regularity that a solver could use."""
    count = 1
    for size in shape:
        count *= size
    index = torch.arange(count, dtype=torch.int64) + 7919 * (seed + 1)
    mixed = (index * index * 31 + index * 1009 + 17 * seed) % 1019
    return ((mixed - 509).double() * (scale / 509.0)).reshape(shape).to(dtype)


STEEPNESS = (0.3, 1.0, 1.7, 12.0)
"""By which the samples' maps differ: the last ones do not contract."""


def steepness(x: Tensor) -> Tensor:
    """[B, 1] for x [B, dim], B at most 4."""
    return torch.tensor(STEEPNESS[: len(x)], dtype=x.dtype)[:, None]


def wave(x: Tensor, *, bend: float = 0.05) -> Callable[[Tensor], Tensor]:
    """f(z) = a ⊙ P z + bend z² + x with a rotation P; affine without a bend.

    Elementwise products and sums of torch's, each rounded once, so that only the solver's own
    arithmetic can change the bits of an iterate.
    """
    a = steepness(x) * pattern(x.shape[-1], dtype=x.dtype, seed=3, scale=0.75)
    return lambda z: step(z, a, x, bend=bend)


def step(z: Tensor, a: Tensor, x: Tensor, *, bend: float = 0.05) -> Tensor:
    """a ⊙ P z + bend z² + x."""
    moved = a * torch.roll(z, 1, -1)
    return moved + bend * z * z + x if bend else moved + x


def descent(x: Tensor) -> Callable[[Tensor], Tensor]:
    """f(z) = z − ∇r(z) of a convex quadratic r: its Jacobian is symmetric."""
    curvature = steepness(x) * (1.0 + pattern(x.shape[-1], dtype=x.dtype, seed=5, scale=0.5))

    def f(z: Tensor) -> Tensor:
        neighbours = torch.roll(z, 1, -1) + torch.roll(z, -1, -1)
        return z - (curvature * z + 0.125 * neighbours - x)

    return f


def digest(tensor: Tensor | None) -> str:
    """SHA-256 of dtype, shape and bytes, shortened; "none" for nothing."""
    if tensor is None:
        return "none"
    tensor = tensor.detach().contiguous()
    text = f"{tensor.dtype} {list(tensor.shape)}"
    content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return hashlib.sha256(text.encode() + content).hexdigest()[:DIGITS]


def digests(tensors: Mapping[str, Tensor | None]) -> dict[str, str]:
    """The digest of each."""
    return {name: digest(tensor) for name, tensor in tensors.items()}


def of_solution(solution: dk.Solution) -> dict[str, str]:
    """Digests of all that a solve returns, its inverse by two products."""
    assert isinstance(solution.z, Tensor)
    kept = {
        "z": solution.z,
        "status": solution.status,
        "steps": solution.steps,
        "residual": solution.residual,
        "trace": solution.trace,
    }
    inverse = solution.inverse_jacobian
    if inverse is not None:
        x = pattern(*solution.z.shape, dtype=solution.z.dtype, seed=11)
        kept |= {"matvec": inverse.matvec(x), "rmatvec": inverse.rmatvec(x)}
    return digests(kept)
