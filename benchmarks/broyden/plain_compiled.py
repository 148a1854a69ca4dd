"""Good Broyden in plain PyTorch with its update compiled by torch.compile."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    Solve = Callable[[Callable[[Tensor], Tensor], Tensor, int], Tensor]

# torch.compile makes a program of its own for sizes 0 and 1, and one for all others.
_EAGER_PAIRS = 2


class CompileError(RuntimeError):
    """torch.compile fails on this machine; the message is its own."""


def update(
    f_z: Tensor,
    z: Tensor,
    best: Tensor,
    best_norm: Tensor,
    step: Tensor,
    u: Tensor,
    v: Tensor,
) -> tuple[Tensor, ...]:
    """All of one step of `plain_pytorch.solve_rearranged` after f(z), but for storing the pair.

    Products are written as sums, which a compiler fuses with what surrounds them. Nothing is
    written in place: torch's compiler copies a history that it is asked to write to, and that of
    torch 2.11 miscompiled this function on the CPU when it wrote to its arguments.

    Args:
        f_z: f(z), [batch, dim].
        z: the iterate, [batch, dim].
        best: the best iterates so far, [batch, dim].
        best_norm: their residual norms, [batch].
        step: the last step, [batch, dim].
        u: left factors stored so far, [batch, k, dim].
        v: right factors stored so far, [batch, k, dim].

    Returns:
        The next z, best, best_norm and step, and the next left and right factor, [batch, dim].
    """
    residual = f_z - z
    norm = residual.square().sum(1).sqrt()
    next_best = torch.where((norm < best_norm)[:, None], z, best)
    v_dot_r = (v * residual[:, None]).sum(2)
    u_dot_s = (u * step[:, None]).sum(2)
    w = (v_dot_r[:, :, None] * u).sum(1) - residual
    new_v = (u_dot_s[:, :, None] * v).sum(1) - step
    step_norm_sq = step.square().sum(1)
    denominator = (step * w).sum(1) + step_norm_sq
    new_u = -w / denominator[:, None]
    next_step = new_u * step_norm_sq[:, None]
    return z + next_step, next_best, torch.minimum(norm, best_norm), next_step, new_u, new_v


def make_solve(device: str) -> "Solve":
    """Return a solver like `plain_pytorch.solve_rearranged`, its update compiled.

    The update is compiled anew for every state's shape, with the number of stored pairs left open:
    what is compiled for one shape and reused for others is slower.

    Raises:
        CompileError: torch.compile fails on this machine.
    """
    compiled = torch.compile(update, fullgraph=True)
    compiled_for: list[tuple[torch.Size, torch.dtype]] = []

    def solve(f: Callable[[Tensor], Tensor], z0: Tensor, steps: int) -> Tensor:
        if compiled_for != [(z0.shape, z0.dtype)]:
            torch._dynamo.reset()
            compiled_for[:] = [(z0.shape, z0.dtype)]
        return _solve(compiled, f, z0, steps)

    _try(solve, device)
    return solve


def _solve(
    compiled: Callable[..., tuple[Tensor, ...]],
    f: Callable[[Tensor], Tensor],
    z0: Tensor,
    steps: int,
) -> Tensor:
    batch, dim = z0.shape
    u = z0.new_empty(batch, steps - 1, dim)
    v = z0.new_empty(batch, steps - 1, dim)
    z = best = z0.clone()
    step = f(z) - z
    best_norm = torch.linalg.vector_norm(step, dim=1)
    z = z + step
    for k in range(steps - 1):
        stored = (u[:, :k], v[:, :k])
        call: Callable[..., tuple[Tensor, ...]] = update
        if k >= _EAGER_PAIRS:
            call = compiled
            for factor in stored:
                torch._dynamo.mark_dynamic(factor, 1)
        z, best, best_norm, step, new_u, new_v = call(f(z), z, best, best_norm, step, *stored)
        u[:, k].copy_(new_u)
        v[:, k].copy_(new_v)
    norm = torch.linalg.vector_norm(f(z) - z, dim=1)
    return torch.where((norm < best_norm)[:, None], z, best)


def _try(solve: "Solve", device: str) -> None:
    """Compile for one small problem and throw the result away."""
    z0 = torch.ones(2, 64, device=device)
    try:
        with torch.no_grad():
            solve(lambda z: torch.cos(z), z0, _EAGER_PAIRS + 3)
    # The compiler is a world of its own: whatever goes wrong in it, the others are measured.
    except Exception as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise CompileError(f"{type(error).__name__}: {reason}") from error
