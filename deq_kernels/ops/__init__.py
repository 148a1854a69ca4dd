"""Operators: one schema, one PyTorch reference, and faster kernels where they can be had."""

from deq_kernels.ops import anderson, backends, broyden, cells, damped, gmres, low_rank, memory
from deq_kernels.ops.backends import use_backend
from deq_kernels.ops.registry import OPS
from deq_kernels.ops.termination import Status, Tables

backends.load()

__all__ = [
    "OPS",
    "Status",
    "Tables",
    "anderson",
    "backends",
    "broyden",
    "cells",
    "damped",
    "gmres",
    "low_rank",
    "memory",
    "use_backend",
]
