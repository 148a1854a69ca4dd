"""Calls of the ops from their schemas: one that is accepted, then changed, made and looked at."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deq_kernels.ops import OPS
from python_tests.hostile.mutations import Mutation, mutate
from python_tests.hostile.valid_calls import VALID_CALLS, Arguments, Sizes

GUARD = 512
"""Bytes on either side of an argument that no call may change."""

REFUSALS = (RuntimeError, ValueError, TypeError)


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        op: its name.
        arguments: by name, in the order of the schema.
        mutations: what was done to them.
        written: the arguments that the op writes to.
        memory: what each tensor lies in, with bytes that nobody may touch around it.
    """

    op: str
    arguments: Arguments
    mutations: list[Mutation]
    written: frozenset[str]
    memory: list[Tensor]

    @classmethod
    def draw(cls, seed: int, *, guarded: bool, large: bool) -> Call:
        """The call of a seed: with no mutation, one or several.

        Args:
            seed: what decides everything.
            guarded: whether tensors lie between guards; where a sanitizer watches, it does better.
            large: whether sizes around the edges of a tile are drawn too.
        """
        choice = random.Random(seed)
        torch.manual_seed(seed)
        name = choice.choice(sorted(OPS))
        schema = OPS[name].overload._schema  # type: ignore[attr-defined]
        kinds = {argument.name: str(argument.type) for argument in schema.arguments}
        written = frozenset(
            argument.name
            for argument in schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        )
        given = VALID_CALLS[name](Sizes(choice, large=large))
        arguments = {argument: given[argument] for argument in kinds}
        mutations = []
        for _ in range(choice.choice((0, 1, 1, 1, 1, 2, 3))):
            argument = choice.choice(list(kinds))
            done = mutate(choice, arguments, argument, kinds[argument], written)
            if done is not None:
                mutations.append(done)
        memory: list[Tensor] = []
        if guarded:
            _guard(arguments, memory)
        return cls(name, arguments, mutations, written, memory)

    def make(self) -> Tensor | None:
        """Make the call by way of the dispatcher, or of the reference where that is in use."""
        result: Tensor | None = OPS[self.op].call(*self.arguments.values())
        return result

    def shares(self, name: str) -> bool:
        """Whether an argument has its storage in common with another one."""
        storage = self.arguments[name].untyped_storage().data_ptr()
        others = (value for other, value in self.tensors().items() if other != name)
        return any(value.untyped_storage().data_ptr() == storage for value in others)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that have memory, by name."""
        return {
            name: value
            for name, value in self.arguments.items()
            if isinstance(value, Tensor) and value.untyped_storage().nbytes() > 0
        }


def _guard(arguments: Arguments, memory: list[Tensor]) -> None:
    """Move every storage between guards; tensors that share one still do."""
    moved: dict[int, Tensor] = {}
    for name, value in arguments.items():
        if not isinstance(value, Tensor) or value.untyped_storage().nbytes() == 0:
            continue
        storage = value.untyped_storage()
        if storage.data_ptr() not in moved:
            held = torch.randint(0, 256, (storage.nbytes() + 2 * GUARD,), dtype=torch.uint8)
            held[GUARD : GUARD + storage.nbytes()] = _bytes_of(value)
            moved[storage.data_ptr()] = held
            memory.append(held)
        offset = GUARD // value.element_size() + value.storage_offset()
        arguments[name] = torch.tensor([], dtype=value.dtype).set_(
            moved[storage.data_ptr()].untyped_storage(), offset, value.shape, value.stride()
        )


def _bytes_of(tensor: Tensor) -> Tensor:
    """The storage of a tensor, byte by byte."""
    storage = tensor.untyped_storage()
    return torch.tensor([], dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),))


def _bits(tensor: Tensor) -> bytes:
    return _bytes_of(tensor).numpy().tobytes()


def check(seed: int, *, guarded: bool, large: bool, reads: bool = True) -> bool:
    """Make the call of a seed and check what came of it; returns whether it was accepted.

    A call is refused with an error that says so, and leaves its tensors as they were; or it is
    accepted, changes nothing but what its schema says, and gives the same bits when it is made
    again.

    Args:
        seed: of the call.
        guarded: see `Call.draw`.
        large: see `Call.draw`.
        reads: whether the backend reads counts before it goes by them, and can refuse them.

    Raises:
        AssertionError: none of this; names the call.
    """
    first, again = (Call.draw(seed, guarded=guarded, large=large) for _ in range(2))
    story = f"seed {seed}: {first.op}, {'; '.join(m.what for m in first.mutations) or 'valid'}"
    before = {name: _bits(tensor) for name, tensor in first.tensors().items()}
    guards = [(held[:GUARD].clone(), held[-GUARD:].clone()) for held in first.memory]
    refusal: Exception | None = None
    result: Any = None
    try:
        result = first.make()
    except REFUSALS as error:
        refusal = error
    except Exception as error:
        raise AssertionError(f"{story}: raised {error!r}") from error
    for held, (low, high) in zip(first.memory, guards, strict=True):
        assert held[:GUARD].equal(low), f"{story}: wrote before an argument"
        assert held[-GUARD:].equal(high), f"{story}: wrote behind an argument"
    for name, tensor in first.tensors().items():
        if refusal is not None or (name not in first.written and not first.shares(name)):
            assert _bits(tensor) == before[name], f"{story}: changed {name}"
    if refusal is not None:
        assert first.mutations, f"{story}: refused, {refusal}"
        return False
    refused = [m for m in first.mutations if m.refused and (reads or not m.by_contents)]
    assert len(first.mutations) != 1 or not refused, f"{story}: accepted"
    repeated = again.make()
    for name in first.tensors():
        assert _bits(first.arguments[name]) == _bits(again.arguments[name]), (
            f"{story}: {name} differs when the call is made again"
        )
    if result is not None and first.op != "history_memory":
        assert repeated is not None
        assert _bits(result) == _bits(repeated), f"{story}: the result differs the second time"
    return True
