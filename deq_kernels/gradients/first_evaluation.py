"""The first evaluation of a solve, under autograd for the sake of what the cell keeps from it.

A solver evaluates f without autograd, and the evaluation that is recorded for the gradient comes
last. Whatever a cell computes once and keeps (`torch.nn.utils.parametrize.cached()`, a dict, an
attribute, a functools cache) would therefore be computed in the solve, as a constant, and the
recorded evaluation would read that constant: gradients would vanish without a word. With its graph
from the first evaluation it carries them, and no evaluation is added.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deq_kernels.solvers import PerSample, State
from deq_kernels.solvers.machinery.structure import tuple_of


def record_first(f: PerSample) -> None:
    """Let the next evaluation of f run under autograd, and return no graph.

    Where autograd is on already, as in solvers that differentiate f, nothing is changed.
    """
    function = f.function

    def first(*args: Any) -> State:
        f.function = function
        if torch.is_grad_enabled():
            return function(*args)
        with torch.enable_grad():
            f_z = function(*args)
        return _detached(f_z)

    f.function = first


def _detached(state: State) -> State:
    # What is no state passes through, for the solver to refuse it in its own words.
    if isinstance(state, tuple):
        parts = (part.detach() if isinstance(part, Tensor) else part for part in state)
        return tuple_of(type(state), parts)
    return state.detach() if isinstance(state, Tensor) else state
