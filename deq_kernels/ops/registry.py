"""Schemas, references and fakes go in here; other kernels join through torch's dispatcher.

An op is defined once, with the PyTorch reference as its composite kernel. Compiled libraries and
Triton only add kernels for their dispatch key, so an install without a compiler has every op.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from deq_kernels.ops.contract import Contract, checked

NAMESPACE = "deq_kernels"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")


class Op:
    """One operator: `call` runs it on the backend in use."""

    __slots__ = ("call", "checked", "name", "overload", "reference")

    def __init__(
        self, name: str, reference: Callable[..., Any], check: Callable[..., None]
    ) -> None:
        self.name = name
        self.overload: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
        self.checked = partial(checked, Contract.of(self.overload), check)
        """Of a kernel in Python: one that checks its arguments first."""
        self.reference = self.checked(reference)
        self.call = self.overload

    def holds_kernel(self, key: str) -> bool:
        """Whether a kernel other than the reference is registered at a dispatch key."""
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{self.name}", key)


OPS: dict[str, Op] = {}


def define(
    schema: str,
    *,
    reference: Callable[..., Any],
    check: Callable[..., None],
    fake: Callable[..., Any],
) -> Op:
    """Define `deq_kernels::<schema>` with its reference kernel and its fake (shape) kernel.

    `check` raises unless the op's arguments fit each other; it runs before every kernel in Python,
    and with it what all ops demand (`deq_kernels.ops.contract`).
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    OPS[name] = Op(name, reference, check)
    LIBRARY.impl(name, OPS[name].reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    return OPS[name]


def in_place_fake(*args: Any) -> None:
    """Fake of an op that only writes to its arguments."""
