"""What every op demands of its arguments, by their names and what its schema says of them.

The same contracts as in csrc/torch/memory.h and `check_stopping` of csrc/torch/arguments.h.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

NOT_NEGATIVE = ("rtol", "regularization")
"""Not `atol`: one below 0 is a tolerance that no residual meets."""
COUNTS = ("stall_steps", "max_backtracks")


def check_scalar(name: str, value: float) -> None:
    """Raise RuntimeError unless a number is what its name promises."""
    if name in COUNTS:
        if value < 0:
            raise RuntimeError(f"{name} must be at least 0, got {value}")
    elif name == "divergence_factor":
        if not value >= 0.0:
            raise RuntimeError(f"{name} must be at least 0, got {value}")
    elif name in NOT_NEGATIVE:
        if not 0.0 <= value < math.inf:
            raise RuntimeError(f"{name} must be finite and at least 0, got {value}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RuntimeError(f"{name} must be finite, got {value}")


def are_distinct(dimensions: Iterable[tuple[int, int]]) -> bool:
    """Whether dimensions, (stride, size) each, step over all that the denser ones span."""
    span = 1
    for stride, size in sorted(dimensions):
        if size > 1:
            if stride < span:
                return False
            span += (size - 1) * stride
    return True


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes of an argument from its first element to its last one."""

    name: str
    tensor: Tensor
    begin: int
    end: int

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Extent:
        """Raises RuntimeError where the tensor has elements but no memory."""
        if tensor.numel() == 0:
            return cls(name, tensor, 0, 0)
        begin = tensor.data_ptr()
        if begin == 0:
            raise RuntimeError(f"{name} has elements but no memory; its storage was resized")
        last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        return cls(name, tensor, begin, begin + (last + 1) * tensor.element_size())

    def check_apart(self, written: Extent) -> None:
        """Raise RuntimeError where it shares memory with an argument that is written to."""
        if self.begin >= written.end or written.begin >= self.end:
            return
        a, b, size = self.tensor, written.tensor, self.tensor.element_size()
        distance = abs(self.begin - written.begin)
        # Rows of tensors alike may take turns, as those of two halves of one buffer do.
        if (a.shape, a.stride(), size) == (b.shape, b.stride(), b.element_size()):
            dimensions = zip(a.stride(), a.shape, strict=True)
            if distance % size == 0 and are_distinct([*dimensions, (distance // size, 2)]):
                return
        raise RuntimeError(
            f"{self.name} must not share memory with {written.name}, which is written to; pass "
            f"{self.name}.clone()"
        )


@dataclass(frozen=True, slots=True)
class Contract:
    """Of one op: the names of its arguments, and which of them it writes to."""

    names: tuple[str, ...]
    written: frozenset[str]

    @classmethod
    def of(cls, overload: Any) -> Contract:
        """What the schema of an op's overload says."""
        arguments = overload._schema.arguments
        written = (a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)
        return cls(tuple(a.name for a in arguments), frozenset(written))

    def check(self, arguments: tuple[Any, ...]) -> None:
        """Raise RuntimeError unless numbers are in range and what is written to is apart."""
        written: list[Extent] = []
        read: list[Extent] = []
        for name, value in zip(self.names, arguments, strict=True):
            if isinstance(value, Tensor):
                extent = Extent.of(name, value)
                (written if name in self.written else read).append(extent)
            elif isinstance(value, int | float):
                check_scalar(name, value)
        for i, extent in enumerate(written):
            tensor = extent.tensor
            dimensions = zip(tensor.stride(), tensor.shape, strict=True)
            if extent.end > 0 and not are_distinct(dimensions):
                raise RuntimeError(
                    f"{extent.name} is written to, so no two of its elements may share memory; "
                    f"pass {extent.name}.contiguous()"
                )
            for other in (*written[i + 1 :], *read):
                other.check_apart(extent)


def checked(
    contract: Contract, check: Callable[..., None], kernel: Callable[..., Any]
) -> Callable[..., Any]:
    """A kernel that is called once its arguments have been checked, by the op and by all ops."""

    def call(*arguments: Any) -> Any:
        check(*arguments)
        contract.check(arguments)
        return kernel(*arguments)

    return call
