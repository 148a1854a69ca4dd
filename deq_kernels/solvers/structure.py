"""States as users write them, tensors or tuples of tensors, and as solvers keep them: [B, d]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

State: TypeAlias = Tensor | tuple[Tensor, ...]
"""One tensor [B, ...] with at least two dimensions, or a tuple of tensors with equal B, of which
one has."""


class OutputError(Exception):
    """An evaluation of f was against its contract; what is raised is one of the classes below.

    Attributes:
        where: which evaluation of which solve it was, in words; the solver's loop fills it in.
    """

    where: str = ""

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} This was {self.where}." if self.where else message


class OutputTypeError(OutputError, TypeError):
    """f returned another structure, dtype or device."""


class OutputShapeError(OutputError, ValueError):
    """f returned another shape."""


class ChangedInPlaceError(OutputError, RuntimeError):
    """f changed the state it was given."""


@dataclass(frozen=True, slots=True)
class Structure:
    """Shapes of a state, and the way from it to one row per sample and back.

    Attributes:
        shapes: shape of each tensor, batch included.
        sizes: elements per sample of each tensor.
        is_tuple: whether the state is a tuple.
        is_flat: whether the state is one tensor [B, d] already.
        batch: B.
        dtype: common dtype.
        device: common device.
    """

    shapes: tuple[torch.Size, ...]
    sizes: tuple[int, ...]
    is_tuple: bool
    is_flat: bool
    batch: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, state: State, name: str) -> Structure:
        """Structure of `state`; `name` is what errors call it.

        Raises:
            TypeError: not a tensor or tuple of tensors, or dtypes or devices differ.
            ValueError: a tensor without a batch dimension, differing batch sizes, an empty tuple.
        """
        parts = _parts(state, name, TypeError)
        if not parts:
            raise ValueError(f"{name} must hold at least one tensor; got an empty tuple.")
        for part in parts:
            if part.dim() < 1:
                raise ValueError(
                    f"{name} must have a batch dimension first; got a tensor without dimensions. "
                    "Add one with .reshape(1, 1)."
                )
        first = parts[0]
        for part in parts[1:]:
            if part.shape[0] != first.shape[0]:
                raise ValueError(
                    f"The tensors of {name} must have one batch size; got {first.shape[0]} and "
                    f"{part.shape[0]}."
                )
            if part.dtype != first.dtype or part.device != first.device:
                raise TypeError(
                    f"The tensors of {name} must share one dtype and device; got {first.dtype} on "
                    f"{first.device} and {part.dtype} on {part.device}."
                )
        sizes = tuple(part.shape[1:].numel() for part in parts)
        return cls(
            tuple(part.shape for part in parts),
            sizes,
            isinstance(state, tuple),
            len(parts) == 1 and not isinstance(state, tuple) and first.dim() == 2,
            first.shape[0],
            first.dtype,
            first.device,
        )

    def check_batched(self, name: str) -> None:
        """Raise ValueError where no tensor has a dimension besides that of the batch.

        A vector [n] may be meant as one problem of n unknowns, or as n problems of one.
        """
        if all(len(shape) == 1 for shape in self.shapes):
            raise ValueError(
                f"{name} must be [batch, ...], one row per problem; got {list(self.shapes[0])}. "
                f"Pass {name}[None] for one problem of {self.batch} unknowns, f then maps "
                f"[1, {self.batch}]; or {name}[:, None] for {self.batch} problems of one unknown."
            )

    @property
    def dim(self) -> int:
        """d, elements per sample."""
        return sum(self.sizes)

    def flatten(self, state: State, *, allow_cast: bool = False) -> Tensor:
        """The state as rows [B, d], checked; a view where one tensor allows it. Differentiable.

        Args:
            state: what f returned, or another state of this structure.
            allow_cast: take another floating dtype and convert it, as under autocast.

        Raises:
            OutputTypeError: another structure, dtype or device; a TypeError.
            OutputShapeError: another shape; a ValueError.
        """
        if (
            isinstance(state, Tensor)
            and state.shape == self.shapes[0]
            and state.dtype == self.dtype
            and state.device == self.device
            and not self.is_tuple
        ):  # the common case, on the path of every step
            return state if self.is_flat else state.reshape(self.batch, self.sizes[0])
        self._check(state, allow_cast)
        rows = [
            part.to(self.dtype).reshape(self.batch, size)
            for part, size in zip(_parts(state, "f(z)", OutputTypeError), self.sizes, strict=True)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def unflatten(self, flat: Tensor) -> State:
        """[B, d] as the user's state; views of it. Differentiable."""
        if self.is_flat:
            return flat
        if not self.is_tuple:
            return flat.view(self.shapes[0])
        pieces = flat.split(self.sizes, dim=1)
        return tuple(piece.view(s) for piece, s in zip(pieces, self.shapes, strict=True))

    def _check(self, state: State, allow_cast: bool) -> None:
        parts = _parts(state, "f(z)", OutputTypeError)
        if isinstance(state, tuple) != self.is_tuple or len(parts) != len(self.shapes):
            raise OutputTypeError(
                f"f must return what it takes, {self._describe()}; got "
                f"{'a tuple of ' + str(len(parts)) if isinstance(state, tuple) else 'one tensor'}."
            )
        for part, shape in zip(parts, self.shapes, strict=True):
            if part.shape != shape:
                raise OutputShapeError(
                    f"f must return the shape it takes, {list(shape)}; got {list(part.shape)}."
                )
            cast = allow_cast and part.dtype.is_floating_point
            if (part.dtype != self.dtype and not cast) or part.device != self.device:
                raise OutputTypeError(
                    f"f must return the dtype and device it takes, {self.dtype} on {self.device}; "
                    f"got {part.dtype} on {part.device}. Convert z0, or the output of f."
                )

    def _describe(self) -> str:
        return f"a tuple of {len(self.shapes)}" if self.is_tuple else "one tensor"


def _parts(state: State, name: str, error: type[TypeError]) -> tuple[Tensor, ...]:
    parts = state if isinstance(state, tuple) else (state,)
    for part in parts:
        if not isinstance(part, Tensor):
            raise error(
                f"{name} must be a tensor or a tuple of tensors; got {type(part).__name__}."
            )
    return parts


def evaluate(f: Callable[[State], State], state: State, z: Tensor) -> State:
    """f(state), where `state` is z [B, d] or views of it.

    Raises:
        ChangedInPlaceError: f changed the state it was given in place; a RuntimeError.
    """
    before = z._version
    f_z = f(state)
    if z._version != before:
        raise ChangedInPlaceError(
            "f must leave the z it is given as it is, but it changed z in place. Use out-of-place "
            "operations on z, for example relu instead of relu_."
        )
    return f_z
