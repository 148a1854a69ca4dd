"""Good Broyden in plain PyTorch, written to be as fast as PyTorch's own operators allow.

Baselines for a user who would not install a package of kernels: the textbook update in the best
layout, and the same method with its algebra rearranged to need fewer products.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def solve_textbook(f: Callable[[Tensor], Tensor], z0: Tensor, steps: int) -> Tensor:
    """Take ``steps`` Broyden steps with H = -I + sum_i u_i v_i^T and return the best iterates.

    With the last step s and the change of the residual y,

        v = H^T s,    u = (s - H y) / <v, y>,    next step = -H r

    so every step takes three products, 6k vector reads with k stored pairs, as the published
    solvers do. Both factors are stored [batch, steps, dim], preallocated and written in place.

    Args:
        f: the map, [batch, dim] -> [batch, dim]; called ``steps + 1`` times.
        z0: the start, [batch, dim]; not modified.
        steps: the number of steps, at least 1.

    Returns:
        Per sample the evaluated iterate with the smallest residual norm, [batch, dim].
    """
    batch, dim = z0.shape
    u = z0.new_empty(batch, steps - 1, dim)
    v = z0.new_empty(batch, steps - 1, dim)
    z = z0.clone()
    best = z0.clone()
    residual = f(z) - z
    best_norm = torch.linalg.vector_norm(residual, dim=1)
    step = residual.clone()
    change = torch.empty_like(residual)
    product = torch.empty_like(residual)
    for k in range(steps):
        z.add_(step)
        torch.neg(residual, out=change)
        torch.sub(f(z), z, out=residual)
        change.add_(residual)
        norm = torch.linalg.vector_norm(residual, dim=1)
        torch.where((norm < best_norm)[:, None], z, best, out=best)
        torch.minimum(norm, best_norm, out=best_norm)
        if k + 1 == steps:
            break
        _product(step, u[:, :k], v[:, :k], out=v[:, k])
        _product(change, v[:, :k], u[:, :k], out=product)
        torch.sub(step, product, out=u[:, k])
        u[:, k].div_(torch.linalg.vecdot(v[:, k], change)[:, None])
        _product(residual, v[:, : k + 1], u[:, : k + 1], out=step)
        step.neg_()
    return best


def solve_rearranged(f: Callable[[Tensor], Tensor], z0: Tensor, steps: int) -> Tensor:
    """Take ``steps`` Broyden steps with H = -I + sum_i u_i v_i^T and return the best iterates.

    Both factors are stored [batch, steps, dim], preallocated and written in place. With w = H r
    for the new residual r and the last step s, a unit step gives H y = w + s, hence

        v = H^T s,    u = (s - H y) / <s, H y> = -w / (<s, w> + <s, s>),    next step = <s, s> u

    so one product with H and one with its transpose are enough: 4k vector reads per step with k
    stored pairs, against 6k when H y and the next direction are formed by products of their own.

    Args:
        f: the map, [batch, dim] -> [batch, dim]; called ``steps + 1`` times.
        z0: the start, [batch, dim]; not modified.
        steps: the number of steps, at least 1.

    Returns:
        Per sample the evaluated iterate with the smallest residual norm, [batch, dim].
    """
    batch, dim = z0.shape
    u = z0.new_empty(batch, steps - 1, dim)
    v = z0.new_empty(batch, steps - 1, dim)
    z = z0.clone()
    best = z0.clone()
    residual = f(z) - z
    best_norm = torch.linalg.vector_norm(residual, dim=1)
    step = residual.clone()
    w = torch.empty_like(residual)
    for k in range(steps):
        z.add_(step)
        torch.sub(f(z), z, out=residual)
        norm = torch.linalg.vector_norm(residual, dim=1)
        torch.where((norm < best_norm)[:, None], z, best, out=best)
        torch.minimum(norm, best_norm, out=best_norm)
        if k + 1 == steps:
            break
        _product(residual, v[:, :k], u[:, :k], out=w)
        _product(step, u[:, :k], v[:, :k], out=v[:, k])
        step_norm_sq = torch.linalg.vecdot(step, step)
        denominator = torch.linalg.vecdot(step, w).add_(step_norm_sq)
        torch.mul(w, denominator.reciprocal_().neg_()[:, None], out=u[:, k])
        torch.mul(u[:, k], step_norm_sq[:, None], out=step)
    return best


def _product(x: Tensor, left: Tensor, right: Tensor, *, out: Tensor) -> None:
    """Write -x + sum_i right_i <left_i, x> into ``out``; x and out [batch, dim].

    Row vector times matrix: PyTorch's batched product is slower on the CPU with the vector on the
    right.
    """
    if left.shape[1] == 0:
        torch.neg(x, out=out)
        return
    row = x[:, None]
    torch.baddbmm(row, torch.bmm(row, left.mT), right, beta=-1, out=out[:, None])
