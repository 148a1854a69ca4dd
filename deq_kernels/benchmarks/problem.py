"""The fixed-point problem that every provider solves."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import Case

_SPECTRUM = (-2.0, 0.9)


class AffineMap:
    """f(z) = a * z + c with one fixed a and c per coordinate, shared by the batch.

    The solver is what a benchmark measures, so f is one fused call that streams z once. The result
    is written into one of two buffers in turn: allocating it afresh would cost page faults that
    belong to no solver. An earlier result therefore stays valid until the second call after it.

    Attributes:
        evaluations: how often the map was called.
    """

    def __init__(self, a: Tensor, c: Tensor, *, batch: int) -> None:
        self._a = a  # [dim]
        self._c = c  # [dim]
        self._buffers = tuple(a.new_zeros(batch, a.numel()) for _ in range(2))
        self.evaluations = 0

    def __call__(self, z: Tensor) -> Tensor:
        out = self._buffers[self.evaluations % 2]
        self.evaluations += 1
        return torch.addcmul(self._c, self._a, z, out=out)

    def residual_norm(self, z: Tensor) -> Tensor:
        """The norm of f(z) - z per sample, [batch], computed apart from the counted calls."""
        return torch.linalg.vector_norm((self._a - 1) * z + self._c, dim=1)


@dataclass(frozen=True)
class Problem:
    """A map and a start z0 [batch, dim]."""

    f: AffineMap
    z0: Tensor


def make_problem(case: Case, *, dtype: torch.dtype, seed: int = 0) -> Problem:
    """Draw the problem of a case; the same numbers for every dtype, drawn in float32.

    The entries of a, the eigenvalues of the Jacobian, are spread evenly over [-2, 0.9]. That is
    wide enough for Broyden's method to stay well above rounding (relative residual 1e-2 to 1e-4)
    after the 18 to 30 steps of the cases, so equal iterates mean equal trajectories and not merely
    that everybody has arrived. And it is expansive on one side: on a contractive spectrum such as
    [0, 0.95] the float32 trajectories of *one* formulation already part from the float64 ones by
    5e-3, whereas here they stay within 1e-6, which makes a comparison at 1e-4 meaningful.
    """
    generator = torch.Generator().manual_seed(seed)
    a = torch.linspace(*_SPECTRUM, case.dim)[torch.randperm(case.dim, generator=generator)]
    c = torch.randn(case.dim, generator=generator)
    z0 = torch.randn(case.batch, case.dim, generator=generator)
    return Problem(
        f=AffineMap(a.to(dtype), c.to(dtype), batch=case.batch),
        z0=z0.to(dtype),
    )
