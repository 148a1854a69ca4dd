"""The update as the repositories deq and mdeq formulate it, in PyTorch."""

from collections.abc import Callable

import torch
from torch import Tensor


def solve_locuslab(f: Callable[[Tensor], Tensor], z0: Tensor, steps: int) -> Tensor:
    """Take ``steps`` Broyden steps with H = -I + U V^T, factors laid out as those loops have them.

    U is [batch, dim, steps], so that its slices are strided and every product copies them; both
    factors begin as zeros; the three products of a step are einsums that allocate their results;
    NaN are looked for and zeroed; and the norm that decides about the end is read by the host. What
    they do not have, the best iterate of each sample, is kept as every provider here keeps it.

    Args:
        f: the map, [batch, dim] -> [batch, dim]; called ``steps + 1`` times.
        z0: the start, [batch, dim]; not modified.
        steps: the number of steps, at least 1.

    Returns:
        Per sample the evaluated iterate with the smallest residual norm, [batch, dim].
    """
    batch, dim = z0.shape
    u_columns = torch.zeros(batch, dim, steps, dtype=z0.dtype, device=z0.device)
    v_rows = torch.zeros(batch, steps, dim, dtype=z0.dtype, device=z0.device)
    z, residual = z0, f(z0) - z0
    best, lowest = z0, residual.norm(dim=1)
    step = residual
    for k in range(steps):
        z = z + step
        last, residual = residual, f(z) - z
        change = residual - last
        norm = residual.norm(dim=1)
        improved = norm < lowest
        best = torch.where(improved[:, None], z, best)
        lowest = torch.where(improved, norm, lowest)
        if residual.norm().item() == 0.0 or k + 1 == steps:
            break
        left, right = u_columns[:, :, :k], v_rows[:, :k]
        v = torch.einsum("bk,bkd->bd", torch.einsum("bd,bdk->bk", step, left), right) - step
        product = torch.einsum("bdk,bk->bd", left, torch.einsum("bkd,bd->bk", right, change))
        u = (step - product + change) / torch.einsum("bd,bd->b", v, change)[:, None]
        v[v != v] = 0
        u[u != u] = 0
        v_rows[:, k], u_columns[:, :, k] = v, u
        left, right = u_columns[:, :, : k + 1], v_rows[:, : k + 1]
        product = torch.einsum("bdk,bk->bd", left, torch.einsum("bkd,bd->bk", right, residual))
        step = residual - product
    return best
