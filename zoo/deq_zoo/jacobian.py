"""Jacobian regularisation of whatever layer a model solves with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deq_kernels import DEQ
from deq_kernels.nn import jacobian_penalty, one_solve
from deq_zoo.compilation import as_written
from deq_zoo.config import TrainingConfig


class JacobianRegularisation:
    """Decides for each step whether to penalise ‖∂f/∂z‖ and how long to solve, and does it.

    The penalty (Bai, Koltun and Kolter 2021) is taken at the solution, or in pretraining at the
    last state before the cell's last application, for the inputs that the cell had there.

    Args:
        layer: the model's; None where it has none, and nothing may be asked for then.
        config: weights, frequency and jitter.
        compiled: whether the layer's cell is: what torch.compile makes cannot be differentiated
            twice, so the penalty is that of the cell as it is written.

    Raises:
        ValueError: the config asks for a penalty or jitter, and there is no layer.
    """

    def __init__(
        self, layer: DEQ | None, config: TrainingConfig, *, compiled: bool = False
    ) -> None:
        wanted = config.jacobian_weight or config.pretraining_jacobian_weight
        if layer is None and (wanted or config.jittered != "never"):
            raise ValueError(
                "Jacobian regularisation and jitter need a model with a DEQ layer, but this one "
                "has none; leave jacobian_weight and step_jitter out"
            )
        self.layer = layer
        self.config = config
        self.compiled = compiled

    def weight(self, step: int) -> float:
        """Of the penalty in optimiser step `step`, where there is one."""
        config = self.config
        if step < config.pretraining_steps:
            return config.pretraining_jacobian_weight
        every = config.jacobian_growth_steps
        return config.jacobian_weight + (config.jacobian_growth * (step // every) if every else 0.0)

    @contextmanager
    def one_step(self, step: int, epoch: int, generator: torch.Generator) -> Iterator[Penalty]:
        """The forward pass of one step goes inside; the penalty is added up at its end.

        Args:
            step: of the optimiser, from 0.
            epoch: finished epochs.
            generator: decides; it draws as many numbers in every step.
        """
        config, weight = self.config, self.weight(step)
        low, high = config.step_jitter
        coin = float(torch.rand((), generator=generator))
        jitter = int(torch.randint(low, high + 1, (), generator=generator))
        over = config.jacobian_epochs is not None and epoch >= config.jacobian_epochs
        due = weight > 0.0 and not over and coin < config.jacobian_frequency
        compiled, pretraining = self.compiled, step < config.pretraining_steps
        penalty = Penalty(weight if due else 0.0, config.jacobian_probes, compiled=compiled)
        jittered = config.jittered == "always" or (config.jittered == "regularised" and due)
        if self.layer is None or not (due or (jittered and jitter)):
            yield penalty
            return
        solver, cell = self.layer.solver, self.layer.cell
        handle = None
        if due and isinstance(cell, nn.Module):
            # The layer knows the inputs of the whole batch, but is not called in pretraining.
            seen = cell if pretraining else self.layer
            handle = seen.register_forward_hook(penalty.see, with_kwargs=True)
        if jittered and jitter:
            self.layer.solver = replace(solver, max_steps=max(1, solver.max_steps + jitter))
        try:
            # A compiled cell would be compiled anew for each step's hook.
            with as_written() if compiled and due and pretraining else nullcontext():
                yield penalty
        finally:
            self.layer.solver = solver
            if handle is not None:
                handle.remove()


class Penalty:
    """The penalty of one step.

    Args:
        weight: to multiply it with; 0 for none.
        probes: random vectors.
        compiled: see `JacobianRegularisation`.
    """

    def __init__(self, weight: float, probes: int, *, compiled: bool) -> None:
        self.weight = weight
        self.probes = probes
        self.compiled = compiled
        self._call: tuple[Any, ...] | None = None

    def see(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Remember the last call of the cell or the layer; a forward hook."""
        self._call = (module.cell if isinstance(module, DEQ) else module, args, kwargs)

    def value(self, state: Any) -> Tensor | None:
        """‖∂f/∂z‖_F² / d at a state; None where the step has no penalty.

        Args:
            state: the solution; None for where the cell was last evaluated.
        """
        if self.weight == 0.0 or self._call is None:
            return None
        cell, (last, *args), kwargs = self._call  # of a layer's call, last is where it started
        z = last if state is None else state
        with as_written() if self.compiled else nullcontext(), one_solve(cell):
            return jacobian_penalty(lambda z: cell(z, *args, **kwargs), z, probes=self.probes)
