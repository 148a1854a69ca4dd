"""Operators: one schema, one PyTorch reference, and native kernels where they were built."""

from deq_kernels import _native
from deq_kernels.ops import broyden, damped, low_rank
from deq_kernels.ops.registry import OPS, use_backend
from deq_kernels.ops.termination import Status

_native.load()

__all__ = ["OPS", "Status", "broyden", "damped", "low_rank", "use_backend"]
