"""Schemas, references and fakes go in here; native kernels join through torch's dispatcher.

An op is defined once, with the PyTorch reference as its composite kernel. Compiled libraries
only add kernels for their dispatch key, so an install without a compiler has every op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

NAMESPACE = "deq_kernels"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")

BACKENDS = ("native", "reference")


class Op:
    """One operator: `call` runs it on the backend in use."""

    __slots__ = ("call", "name", "overload", "reference")

    def __init__(self, name: str, reference: Callable[..., Any]) -> None:
        self.name = name
        self.reference = reference
        self.overload: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
        self.call = self.overload


OPS: dict[str, Op] = {}


def define(schema: str, *, reference: Callable[..., Any], fake: Callable[..., Any]) -> Op:
    """Define `deq_kernels::<schema>` with its reference kernel and its fake (shape) kernel."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    OPS[name] = Op(name, reference)
    return OPS[name]


def in_place_fake(*args: Any) -> None:
    """Fake of an op that only writes to its arguments."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op on one backend inside the `with` block, in all threads of the process.

    Args:
        name: "native" (the dispatcher's choice: compiled kernels where they exist) or
            "reference" (the PyTorch formulas, on any device).

    Raises:
        ValueError: for any other name.
    """
    if name not in BACKENDS:
        raise ValueError(f"use_backend takes one of {', '.join(BACKENDS)}; got {name!r}.")
    before = {op_name: op.call for op_name, op in OPS.items()}
    for op in OPS.values():
        op.call = op.reference if name == "reference" else op.overload
    try:
        yield
    finally:
        for op_name, call in before.items():
            OPS[op_name].call = call
