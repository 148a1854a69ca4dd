"""Normalised weights computed once per solve, so that f is cheap and one fixed map."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize


@contextmanager
def one_solve(module: nn.Module) -> Iterator[None]:
    """Compute every parametrised tensor of `module` now, and use it for all that happens inside.

        with one_solve(cell):
            z = layer(z0, x)

    A solver evaluates f some tens of times, and every read of a parametrised weight computes it
    anew; spectral norm in training mode even moves its singular vectors with each read, so that f
    would change during the solve. The values are computed on entry under the caller's grad mode,
    because a solver runs without autograd and torch's cache keeps what was computed first. They
    are gone on exit; a backward pass may run later, for it has recorded what it needs.

    Uses `torch.nn.utils.parametrize.cached`, which is global: two threads must not run it at once,
    and parameters must not change inside.

    Args:
        module: the cell, or the whole model; what is not parametrised does not matter.

    Raises:
        RuntimeError: an enclosing parametrize.cached() holds a value without a graph that needs
            one.
    """
    with parametrize.cached():
        for path, child in module.named_modules():
            if parametrize.is_parametrized(child):
                assert isinstance(child.parametrizations, nn.ModuleDict)
                for name, parametrizations in child.parametrizations.items():
                    value = getattr(child, name)  # reading it fills the cache
                    trained = any(p.requires_grad for p in parametrizations.parameters())
                    if trained and torch.is_grad_enabled() and not value.requires_grad:
                        raise RuntimeError(
                            f"{path + '.' if path else ''}{name} is cached without a graph, so "
                            "its parameters would get no gradient; do not wrap the model in "
                            "parametrize.cached() across grad modes."
                        )
        yield
