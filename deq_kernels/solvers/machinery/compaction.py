"""Evaluating f on the samples that still run, once many have stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from deq_kernels.ops.termination import Counter, Status, Tables
from deq_kernels.solvers.machinery.structure import State, Structure, evaluate, tuple_of

Input: TypeAlias = State | None
"""What f takes per sample: a tensor [B, ...], a tuple of such tensors, or None for nothing."""

SHARED = "What all samples share is no input; let the function refer to it."


class PerSample:
    """f(z) = function(z, *inputs), where all inputs have one row per sample.

        solution = Broyden(compact=True)(PerSample(cell, x), z0)

    With `compact=True` a solver calls `function` on a part of the samples: z and every input hold
    the same rows then, in the order of the batch. What is the same for all samples, such as
    weights, is no input: `function` refers to it by itself. It must not refer to tensors with one
    row per sample in that way. `PerSample(function)` says that there are no inputs.

    Args:
        function: called as function(z, *inputs).
        *inputs: tensors [B, ...], tuples of such tensors, or None.

    Raises:
        TypeError: an input is something else.
        ValueError: a tensor has no dimension for the batch.
    """

    def __init__(self, function: Callable[..., State], *inputs: Input) -> None:
        self.function = function
        self.inputs = inputs
        for position, tensor in _tensors(inputs):
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"Input {position} of PerSample must be a tensor, a tuple of tensors or None; "
                    f"got {type(tensor).__name__}. {SHARED}"
                )
            if tensor.dim() < 1:
                raise ValueError(
                    f"Input {position} of PerSample must have one row per sample; got a tensor "
                    f"without dimensions. {SHARED}"
                )

    def __call__(self, z: State) -> State:
        """function(z, *inputs), for the samples that the inputs are of."""
        return self.function(z, *self.inputs)

    @classmethod
    def of_call(
        cls,
        function: Callable[..., State],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        chosen: Sequence[int | str],
    ) -> PerSample:
        """z ↦ function(z, *args, **kwargs), where the chosen arguments have one row per sample.

        Args:
            function: the map.
            args: positional arguments after z.
            kwargs: keyword arguments.
            chosen: positions in `args`, from 0, and names in `kwargs`.

        Raises:
            ValueError: a chosen argument is not there.
            TypeError: as for `PerSample`.
        """
        arguments: dict[int | str, Any] = dict(enumerate(args))
        arguments.update(kwargs.items())
        for key in chosen:
            if key not in arguments:
                raise ValueError(
                    f"per_sample must name arguments of the call, here {list(arguments)}; got "
                    f"{key!r}. Pass that argument too, as None where there is nothing."
                )

        def call(z: State, *inputs: Input) -> State:
            given = {**arguments, **dict(zip(chosen, inputs, strict=True))}
            positional = [given[position] for position in range(len(args))]
            return function(z, *positional, **{name: given[name] for name in kwargs})

        return cls(call, *(arguments[key] for key in chosen))

    def check(self, batch: int) -> None:
        """Raise ValueError unless every input has `batch` rows."""
        for position, tensor in _tensors(self.inputs):
            if tensor.shape[0] != batch:
                raise ValueError(
                    f"Input {position} of PerSample must have one row per sample, [{batch}, ...]; "
                    f"got {list(tensor.shape)}. {SHARED}"
                )

    def select(self, rows: Tensor) -> PerSample:
        """The same map for the samples in `rows` [n] int64 alone."""
        return PerSample(self.function, *(_select(given, rows) for given in self.inputs))


def _tensors(inputs: Sequence[Input]) -> list[tuple[int, Tensor]]:
    """The tensors of the inputs, each with the position of its input."""
    return [
        (position, tensor)
        for position, given in enumerate(inputs)
        for tensor in (given if isinstance(given, tuple) else (given,))
        if tensor is not None
    ]


def _select(given: Input, rows: Tensor) -> Input:
    if given is None:
        return None
    if isinstance(given, tuple):
        parts = (tensor.index_select(0, rows.to(tensor.device)) for tensor in given)
        return tuple_of(type(given), parts)
    return given.index_select(0, rows.to(given.device))


def padded(count: int) -> int:
    """The smallest number of rows from a fixed list that holds `count`: 1 to 8, 10, 12, 14, 16, 20…

    The numbers whose binary digits after the third are zero. So f meets few sizes, whatever the
    data, and works on less than 5/4 of the rows it has to.
    """
    unit = 1 << max(0, count.bit_length() - 3)
    return -(-count // unit) * unit


class CompactEvaluation:
    """Evaluates f at the rows of z that run, and leaves out those that do not.

    The rows of f(z) that are left out keep old values, which no step looks at.

    Args:
        f: the map, with its per-sample inputs.
        structure: how z is a state.
        z: [B, d].
        tables: of the solve; a sample that has stopped never runs again.
    """

    def __init__(self, f: PerSample, structure: Structure, z: Tensor, tables: Tables) -> None:
        self._f, self._structure, self._z = f, structure, z
        self._status = tables.counters[:, Counter.STATUS]
        self._allow_cast = torch.is_autocast_enabled(structure.device.type)
        self._rows: Tensor | None = None
        self._f_z = z
        self.rows = structure.batch
        """How many rows the next evaluation works on."""
        self.rows_evaluated = 0
        """Rows of all evaluations so far."""

    def __call__(self) -> Tensor:
        """f(z) [B, d]."""
        self.rows_evaluated += self.rows
        z = self._z if self._rows is None else self._z.index_select(0, self._rows)
        state = self._structure.views(z)
        f_z = self._structure.flatten(evaluate(self._f, state, z), allow_cast=self._allow_cast)
        return f_z if self._rows is None else self._f_z.index_copy_(0, self._rows, f_z)

    def narrow(self, running: int) -> None:
        """Leave samples out from now on, where `running` of them, or fewer, still run.

        How many rows remain follows from `running`, a number on the host, and which ones from the
        statuses on the device: the host does not wait.
        """
        size = padded(running)
        if size >= self.rows:
            return
        if self._rows is None:
            self._rows = torch.arange(self.rows, device=self._z.device)
            self._f_z = torch.zeros_like(self._z)
        stopped = self._status[self._rows] != Status.RUNNING
        # The running samples and, where the size is larger, the first of the others; in order.
        kept = stopped.to(torch.uint8).argsort(stable=True)[:size].sort().values
        self._rows = self._rows[kept]
        self._f = self._f.select(kept)
        shapes = tuple(torch.Size((size, *shape[1:])) for shape in self._structure.shapes)
        self._structure = replace(self._structure, shapes=shapes, batch=size)
        self.rows = size
