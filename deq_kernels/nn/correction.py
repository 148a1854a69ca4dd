"""Fixed-point correction: a loss on states along the way, so that they all head for the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from deq_kernels.options import check_count
from deq_kernels.solvers import State

Decay = Literal["exponential", "linear", "constant"]


@dataclass(frozen=True, slots=True)
class Correction:
    """A corrected loss and what it is made of.

    Attributes:
        loss: Σ_k w_k L_k, to be differentiated.
        parts: each L_k detached, for logging.
        weights: each w_k.
    """

    loss: Tensor
    parts: tuple[Tensor, ...]
    weights: tuple[float, ...]


def fixed_point_correction(
    criterion: Callable[..., Tensor],
    states: Sequence[State],
    *args: Any,
    weights: Sequence[float] | None = None,
    gamma: float | None = None,
) -> Correction:
    """Σ_k w_k criterion(states[k], *args), the last state being the solution.

    Bai et al. 2022 ("Deep Equilibrium Optical Flow Estimation") add the loss of some iterates, each
    differentiated by a phantom gradient, to that of the fixed point, which steadies the solve. The
    gradient is whatever each state carries; a state without one changes the loss, not its gradient.

        states = (*early, layer(z0, x))
        loss = fixed_point_correction(criterion, states, target, gamma=0.8).loss

    Args:
        criterion: called as criterion(state, *args); returns a tensor, of one shape for all states.
        states: in the order of the solve, solution last.
        *args: passed on, usually the target.
        weights: w_k, one finite number per state; see `correction_weights`.
        gamma: w_k = γ^(n−1−k), instead of `weights`; with neither γ = 0.8.

    Raises:
        ValueError: no states, as many weights as there are not states, weights that are not
            finite, weights and gamma together, gamma outside (0, 1], or criterion returned
            different shapes.
        TypeError: criterion returned something else than a tensor.
    """
    if not states:
        raise ValueError("states must hold at least the solution; got none.")
    if weights is None:
        chosen = correction_weights(len(states), gamma=0.8 if gamma is None else gamma)
    elif gamma is not None:
        raise ValueError("weights and gamma both say how the states count; give one of them.")
    else:
        chosen = tuple(float(weight) for weight in weights)
        if len(chosen) != len(states) or not all(map(math.isfinite, chosen)):
            raise ValueError(
                f"weights must be {len(states)} finite numbers, one per state; got {chosen}."
            )
    parts = [criterion(state, *args) for state in states]
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(f"criterion must return a tensor; got {type(part).__name__}.")
        if part.shape != parts[0].shape:
            raise ValueError(
                "criterion must return one shape for all states; got "
                f"{list(parts[0].shape)} and {list(part.shape)}."
            )
    loss = torch.stack([weight * part for weight, part in zip(chosen, parts, strict=True)]).sum(0)
    return Correction(loss, tuple(part.detach() for part in parts), chosen)


def correction_weights(
    count: int, *, decay: Decay = "exponential", gamma: float | None = None
) -> tuple[float, ...]:
    """w_k of `count` states, k = 0 … n − 1, which is 1 for the last one.

    - "exponential": γ^(n−1−k), by default with γ = 0.8, as RAFT (Teed and Deng 2020) weighs its
      iterates;
    - "linear": 1 − γ (n−1−k)/n, by default with γ = 0.9, as torchdeq offers;
    - "constant": 1, without γ.

    Args:
        count: n, at least 1.
        decay: see above.
        gamma: γ in (0, 1].

    Raises:
        ValueError: an option is out of its range, or gamma is given with "constant".
    """
    check_count("count", count)
    if decay not in get_args(Decay):
        raise ValueError(f"decay must be one of {', '.join(get_args(Decay))}; got {decay!r}.")
    if gamma is not None and decay == "constant":
        raise ValueError('decay="constant" takes no gamma; leave it out.')
    if gamma is not None and not 0 < gamma <= 1:
        raise ValueError(f"gamma must be above 0 and at most 1; got {gamma!r}.")
    before_last = range(count - 1, -1, -1)
    if decay == "exponential":
        base = 0.8 if gamma is None else gamma
        return tuple(base**steps for steps in before_last)
    if decay == "linear":
        slope = 0.9 if gamma is None else gamma
        return tuple(1.0 - slope * steps / count for steps in before_last)
    return (1.0,) * count
