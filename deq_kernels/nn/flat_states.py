"""States as rows [B, d], and their inner products: one number per sample, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from deq_kernels.solvers import State, Structure, evaluate

TILE = 4096
"""Elements added in one go: few enough that torch never splits them among threads."""


def row_dot(x: Tensor, y: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """⟨x_b, y_b⟩ of each sample, [B, d] twice to [B], added in `dtype`. Differentiable.

    The bits depend on the sample alone, not on the batch size or the number of threads: torch
    splits a long sum only where there is one, which happens for a batch of one.
    """
    product = x.to(dtype) * y.to(dtype)
    while product.shape[1] > TILE:
        padded = F.pad(product, (0, -product.shape[1] % TILE))
        product = padded.view(len(padded), -1, TILE).sum(dim=2)
    return product.sum(dim=1)


def flat_map(f: Callable[..., State], structure: Structure) -> Callable[[Tensor], Tensor]:
    """f as a map of [B, d] to [B, d], checked as in a solve; autocast may change its dtype."""

    def flat_f(z: Tensor) -> Tensor:
        allow_cast = torch.is_autocast_enabled(structure.device.type)
        return structure.flatten(evaluate(f, structure.unflatten(z), z), allow_cast=allow_cast)

    return flat_f


def record(f: Callable[..., State], z: State, structure: Structure) -> tuple[Tensor, Tensor]:
    """A fresh leaf holding z as rows, and f of it as autograd recorded it. Call with autograd on.

    The leaf is a copy, so that what z depends on is out of reach, and so that a later change of z
    in place does no harm.
    """
    leaf = structure.flatten(z).detach().clone(memory_format=torch.contiguous_format)
    leaf.requires_grad_()
    return leaf, flat_map(f, structure)(leaf)


def vector_jacobian_product(f_z: Tensor, leaf: Tensor, w: Tensor, create_graph: bool) -> Tensor:
    """Jᵀw, [B, d]; zeros where f(z) does not depend on z."""
    if not f_z.requires_grad:
        return torch.zeros_like(w)
    (product,) = torch.autograd.grad(
        f_z, leaf, w, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )
    return product
