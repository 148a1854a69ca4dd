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

    Args:
        a: slopes, [dim].
        c: offsets, [dim].
        batch: samples of the states.
        count_on_device: count evaluations where they run, at the cost of one more small operation
            in each: a replayed CUDA graph evaluates the map without a call of Python.
    """

    def __init__(self, a: Tensor, c: Tensor, *, batch: int, count_on_device: bool = False) -> None:
        self._a = a
        self._c = c
        self._buffers = tuple(a.new_zeros(batch, a.numel()) for _ in range(2))
        self._calls = 0
        self._count = torch.zeros_like(a[:1], dtype=torch.int64) if count_on_device else None

    def __call__(self, z: Tensor) -> Tensor:
        out = self._buffers[self._calls % 2]
        self._calls += 1
        if self._count is not None:
            self._count.add_(1)
        return torch.addcmul(self._c, self._a, z, out=out)

    @property
    def slopes(self) -> Tensor:
        """a, [dim]."""
        return self._a

    @property
    def offsets(self) -> Tensor:
        """c, [dim]."""
        return self._c

    def count_elsewhere(self, evaluations: int) -> None:
        """Count evaluations of this map that were made in another process."""
        self._calls += evaluations
        if self._count is not None:
            self._count.add_(evaluations)

    @property
    def evaluations(self) -> int:
        """How often the map was evaluated; without ``count_on_device``, how often it was called."""
        return self._calls if self._count is None else int(self._count)

    def image(self, z: Tensor) -> Tensor:
        """f(z), computed apart from the counted calls."""
        return torch.addcmul(self._c, self._a, z)

    def residual_norm(self, z: Tensor) -> Tensor:
        """The norm of f(z) - z per sample, [batch], computed apart from the counted calls."""
        return torch.linalg.vector_norm((self._a - 1) * z + self._c, dim=1)


@dataclass(frozen=True)
class Problem:
    """A map and a start z0 [batch, dim]."""

    f: AffineMap
    z0: Tensor


def make_problem(
    case: Case,
    *,
    dtype: torch.dtype,
    device: torch.device | None = None,
    count_on_device: bool = False,
    seed: int = 0,
) -> Problem:
    """Draw the problem of a case; the same numbers for every dtype and device, drawn in float32.

    The entries of a, the eigenvalues of the Jacobian, are spread evenly over [-2, 0.9]. That is
    wide enough for Broyden's method to stay well above rounding (relative residual 1e-2 to 1e-4)
    after the 18 to 30 steps of the cases, so equal iterates mean equal trajectories and not merely
    that all have converged. And it is expansive on one side: on a contractive spectrum such as
    [0, 0.95] the float32 trajectories of *one* formulation already part from the float64 ones by
    5e-3, whereas here they stay within 1e-6, which makes a comparison at 1e-4 meaningful.
    """
    # Drawn on the CPU: generators of different devices draw different numbers.
    generator = torch.Generator().manual_seed(seed)
    a = torch.linspace(*_SPECTRUM, case.dim)[torch.randperm(case.dim, generator=generator)]
    c = torch.randn(case.dim, generator=generator)
    z0 = torch.randn(case.batch, case.dim, generator=generator)
    return Problem(
        f=AffineMap(
            a.to(device, dtype),
            c.to(device, dtype),
            batch=case.batch,
            count_on_device=count_on_device,
        ),
        z0=z0.to(device, dtype),
    )
