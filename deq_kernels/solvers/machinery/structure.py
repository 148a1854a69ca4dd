"""States as users write them, tensors or tuples of tensors, and as solvers keep them: [B, d]."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = Tensor | tuple[Tensor, ...]
"""One tensor [B, ...] with at least two dimensions, or a tuple of tensors with equal B, of which
one has, and which may be a NamedTuple."""


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
        kind: tuple, or the NamedTuple that the state is; None for one tensor.
        is_flat: whether the state is one tensor [B, d] already.
        batch: B.
        dtype: common dtype.
        device: common device.
    """

    shapes: tuple[torch.Size, ...]
    sizes: tuple[int, ...]
    kind: type[tuple[Tensor, ...]] | None
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
            type(state) if isinstance(state, tuple) else None,
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
    def is_tuple(self) -> bool:
        """Whether the state is a tuple, named or not."""
        return self.kind is not None

    @property
    def dim(self) -> int:
        """d, elements per sample."""
        return sum(self.sizes)

    def flatten(self, state: State, *, allow_cast: bool = False, name: str = "f") -> Tensor:
        """The state as rows [B, d], checked; a view where one tensor allows it. Differentiable.

        Args:
            state: what f returned, or another state of this structure.
            allow_cast: take another floating dtype and convert it, as under autocast.
            name: of what returned it, for errors.

        Raises:
            OutputTypeError: another structure, dtype or device; a TypeError.
            OutputShapeError: another shape; a ValueError.
        """
        if (
            isinstance(state, Tensor)
            and state.shape == self.shapes[0]
            and state.dtype == self.dtype
            and state.device == self.device
            and self.kind is None
        ):  # the common case, on the path of every step
            return state if self.is_flat else state.reshape(self.batch, self.sizes[0])
        parts = self._check(state, allow_cast, name)
        rows = [
            part.to(self.dtype).reshape(self.batch, size)
            for part, size in zip(parts, self.sizes, strict=True)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def unflatten(self, flat: Tensor) -> State:
        """[B, d] as the user's state; views of it. Differentiable."""
        if self.is_flat:
            return flat
        if self.kind is None:
            return flat.view(self.shapes[0])
        pieces = flat.split(self.sizes, dim=1)
        parts = (piece.view(s) for piece, s in zip(pieces, self.shapes, strict=True))
        return tuple_of(self.kind, parts)

    def views(self, flat: Tensor) -> State:
        """[B, d] as the state that f is handed: views that count changes in place with `flat`.

        Autograd refuses such changes to views that were split off together, or made without it, in
        words of its own.
        """
        with torch.enable_grad():
            if self.kind is None:
                return self.unflatten(flat)
            ends = accumulate(self.sizes)
            parts = [
                flat.narrow(1, end - size, size).view(shape)
                for size, end, shape in zip(self.sizes, ends, self.shapes, strict=True)
            ]
            return tuple_of(self.kind, parts)

    def separate(self, flat: Tensor) -> State:
        """[B, d] as the user's state in memory of its own, each part by itself. Differentiable.

        Autograd forbids changes in place to views that were split off together, or were made
        without it, and values that a backward pass needs must stay as they are.
        """
        state = self.unflatten(flat)
        if isinstance(state, Tensor):
            return state.clone()
        parts = (part.clone(memory_format=torch.contiguous_format) for part in state)
        return tuple_of(type(state), parts)

    def _check(self, state: State, allow_cast: bool, name: str) -> tuple[Tensor, ...]:
        parts = _parts(state, f"{name}(z)", OutputTypeError)
        kind = type(state) if isinstance(state, tuple) else None
        matches = len(parts) == len(self.shapes) and (kind is None) == (self.kind is None)
        # Fields are matched by position: a tuple without names may stand for one with names, but
        # not one with other names.
        if not matches or (kind is not self.kind and tuple not in (kind, self.kind)):
            raise OutputTypeError(
                f"{name} must return what it takes, {_describe(self.kind, len(self.shapes))}; got "
                f"{_describe(kind, len(parts))}."
            )
        for part, shape in zip(parts, self.shapes, strict=True):
            if part.shape != shape:
                raise OutputShapeError(
                    f"{name} must return the shape it takes, {list(shape)}; got {list(part.shape)}."
                )
            cast = allow_cast and part.dtype.is_floating_point
            if (part.dtype != self.dtype and not cast) or part.device != self.device:
                raise OutputTypeError(
                    f"{name} must return the dtype and device it takes, {self.dtype} on "
                    f"{self.device}; got {part.dtype} on {part.device}. Convert z0, or the output "
                    f"of {name}."
                )
        return parts


def tuple_of(kind: type[tuple[Tensor, ...]], parts: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The parts as a tuple, or as the NamedTuple that `kind` is."""
    return kind(*parts) if is_named(kind) else tuple(parts)


def is_named(kind: type) -> bool:
    """Whether a type of tuples is a NamedTuple."""
    return hasattr(kind, "_fields")


def _describe(kind: type | None, length: int) -> str:
    if kind is None:
        return "one tensor"
    return f"{'a tuple' if kind is tuple else kind.__name__} of {length}"


def _parts(state: State, name: str, error: type[TypeError]) -> tuple[Tensor, ...]:
    kind = type(state)
    if isinstance(state, tuple) and kind is not tuple and not is_named(kind):
        raise error(
            f"{name} must be a tensor, a plain tuple or a NamedTuple of tensors; got "
            f"{kind.__name__}, which is another kind of tuple. Convert it with tuple(...)."
        )
    parts: tuple[Any, ...] = state if isinstance(state, tuple) else (state,)
    for part in parts:
        if not isinstance(part, Tensor):
            advice = ""
            if isinstance(part, (dict, list, tuple)):
                advice = " Use one flat tuple, or a NamedTuple where the parts should have names."
            raise error(
                f"{name} must be a tensor or a tuple of tensors; got {type(part).__name__}.{advice}"
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
