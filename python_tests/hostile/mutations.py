"""What is done to an argument that an op accepts, so that most often it must not.

A mutation changes the arguments in place and says what it did, or None where it does not apply.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from python_tests.hostile.valid_calls import Arguments

INTS = (-1, -(2**63), 2**63 - 1, 2**62, 17)
FLOATS = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e308)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.uint8)


@dataclass(frozen=True)
class Mutation:
    """What was done to which argument.

    Attributes:
        what: for reading.
        refused: no op may accept it.
        by_contents: because of a number in a tensor, which only those can know who may read it.
    """

    what: str
    refused: bool = False
    by_contents: bool = False


Mutate = Callable[[random.Random, Arguments, str, frozenset[str]], Mutation | None]
"""From a source of choices, the arguments, the name of one, and the names of those written to."""


def _has_elements(tensor: Tensor) -> bool:
    """Whether there are any, in memory that was not freed."""
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() > 0


def _of_other_size(
    choice: random.Random, arguments: Arguments, name: str, written: frozenset[str]
) -> Mutation | None:
    tensor: Tensor = arguments[name]
    if tensor.dim() == 0:
        return None
    shape = list(tensor.shape)
    i = choice.randrange(len(shape))
    shape[i] = choice.choice((0, max(0, shape[i] - 1), shape[i] + 1))
    arguments[name] = torch.zeros(shape, dtype=tensor.dtype)
    return Mutation(f"{name} of shape {shape}")


def _without_elements(
    choice: random.Random, arguments: Arguments, name: str, written: frozenset[str]
) -> Mutation | None:
    """Sizes that nothing bounds, because there is no element."""
    tensor: Tensor = arguments[name]
    if tensor.dim() == 0:
        return None
    shape = [choice.choice((0, 1, 2**31, 2**62)) for _ in tensor.shape]
    if 0 not in shape:
        shape[choice.randrange(len(shape))] = 0
    arguments[name] = torch.empty_strided(shape, [1] * len(shape), dtype=tensor.dtype)
    return Mutation(f"{name} of shape {shape}")


def _of_other_dimensions(
    choice: random.Random, arguments: Arguments, name: str, written: frozenset[str]
) -> Mutation | None:
    tensor: Tensor = arguments[name]
    arguments[name] = choice.choice((tensor[None], tensor.flatten(), tensor.sum()))
    return Mutation(f"{name} of {arguments[name].dim()} dimensions")


def _of_other_dtype(
    choice: random.Random, arguments: Arguments, name: str, written: frozenset[str]
) -> Mutation | None:
    dtype = choice.choice(DTYPES)
    arguments[name] = arguments[name].to(dtype)
    return Mutation(f"{name} of {dtype}")


def _expanded(
    choice: random.Random, arguments: Arguments, name: str, written: frozenset[str]
) -> Mutation | None:
    tensor: Tensor = arguments[name]
    wide = [i for i, size in enumerate(tensor.shape) if size > 1]
    if not wide:
        return None
    i = choice.choice(wide)
    arguments[name] = tensor.narrow(i, 0, 1).clone().expand(tensor.shape)
    return Mutation(f"{name} expanded along {i}", name in written)


def _strided(
    choice: random.Random, arguments: Arguments, name: str, written: frozenset[str]
) -> Mutation | None:
    """Other strides, with gaps or with elements that share memory."""
    tensor: Tensor = arguments[name]
    strides = [choice.choice((0, 1, 2, s, s + 1, max(0, s - 1))) for s in tensor.stride()]
    room = sum((size - 1) * s for size, s in zip(tensor.shape, strides, strict=True)) + 1
    memory = torch.zeros(max(1, room), dtype=tensor.dtype)
    arguments[name] = memory.as_strided(tensor.shape, strides)
    return Mutation(f"{name} of strides {strides}")


def _shared(
    choice: random.Random, arguments: Arguments, name: str, written: frozenset[str]
) -> Mutation | None:
    """Two arguments in one buffer, of which the second begins within the first."""
    others = [
        other
        for other, value in arguments.items()
        if other != name and isinstance(value, Tensor) and _has_elements(value)
    ]
    tensor: Tensor = arguments[name]
    if not others:
        return None
    other = choice.choice(others)
    pair = (tensor.contiguous(), arguments[other].contiguous())
    # Aligned for both.
    offset = choice.randrange(pair[0].nbytes) // 8 * 8
    memory = torch.zeros(offset + sum(t.nbytes for t in pair) + 8, dtype=torch.uint8)
    for start, key, value in zip((0, offset), (name, other), pair, strict=True):
        view = memory[start : start + value.nbytes].view(value.dtype).view(value.shape)
        view.copy_(value)
        arguments[key] = view
    return Mutation(
        f"{other} begins at byte {offset} of {name}", name in written or other in written
    )


def _freed(
    choice: random.Random, arguments: Arguments, name: str, written: frozenset[str]
) -> Mutation | None:
    tensor: Tensor = arguments[name].clone()
    tensor.untyped_storage().resize_(0)
    arguments[name] = tensor
    return Mutation(f"{name} of a freed storage", name != "like")


def _of_other_contents(
    choice: random.Random, arguments: Arguments, name: str, written: frozenset[str]
) -> Mutation | None:
    tensor: Tensor = arguments[name].clone()
    places = tensor.view(-1)
    i = choice.randrange(len(places))
    values = FLOATS if tensor.dtype.is_floating_point else INTS
    value = choice.choice(values)
    places[i] = value if tensor.dtype in (torch.int64, torch.float64) else min(value, 100.0)
    arguments[name] = tensor
    counts = name in ("rank", "count")
    return Mutation(f"{name} with {value} in element {i}", counts, by_contents=True)


def _missing(
    choice: random.Random, arguments: Arguments, name: str, written: frozenset[str]
) -> Mutation | None:
    arguments[name] = None
    return Mutation(f"{name} is None")


def _int(
    choice: random.Random, arguments: Arguments, name: str, written: frozenset[str]
) -> Mutation | None:
    arguments[name] = choice.choice(INTS)
    return Mutation(f"{name} = {arguments[name]}", arguments[name] < 0)


def _float(
    choice: random.Random, arguments: Arguments, name: str, written: frozenset[str]
) -> Mutation | None:
    arguments[name] = choice.choice(FLOATS)
    return Mutation(f"{name} = {arguments[name]}", math.isnan(arguments[name]))


def _bool(
    choice: random.Random, arguments: Arguments, name: str, written: frozenset[str]
) -> Mutation | None:
    arguments[name] = not arguments[name]
    return Mutation(f"{name} = {arguments[name]}")


OF_TENSORS: tuple[Mutate, ...] = (
    _of_other_size,
    _without_elements,
    _of_other_dimensions,
    _of_other_dtype,
    _expanded,
    _strided,
    _shared,
    _shared,
    _freed,
    _of_other_contents,
    _of_other_contents,
)
OF_SCALARS: dict[str, Mutate] = {"int": _int, "float": _float, "bool": _bool}


def mutate(
    choice: random.Random, arguments: Arguments, name: str, kind: str, written: frozenset[str]
) -> Mutation | None:
    """Change one argument, and with it perhaps another one.

    Args:
        choice: of what is done.
        arguments: by name; changed.
        name: of the argument.
        kind: its type as the schema names it.
        written: the arguments that the op writes to.
    """
    if isinstance(arguments[name], Tensor):
        if not _has_elements(arguments[name]):
            return None
        of_tensors = (*OF_TENSORS, _missing) if kind.startswith("Optional") else OF_TENSORS
        try:
            return choice.choice(of_tensors)(choice, arguments, name, written)
        except RuntimeError:  # there is no such tensor, or not of what an earlier one left
            return None
    known = OF_SCALARS.get(kind)
    return None if known is None else known(choice, arguments, name, written)
