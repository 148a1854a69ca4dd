"""The memory that finished solves leave for the next ones."""

from __future__ import annotations

from deq_kernels.ops import memory
from deq_kernels.solvers.machinery.capture import forget_captures


def empty_cache() -> int:
    """Give the memory of finished solves back.

    The CPU library keeps the buffers of finished solver histories for the next solve, never more
    than were once in use together; they go back to the operating system. The device memory that
    solves of the calling thread with `cuda_graph=True` keep goes back to torch, whose
    `torch.cuda.empty_cache` then returns it to the device.

    Returns:
        How many bytes were given back to the operating system; 0 where there is no CPU library.
    """
    forget_captures()
    return memory.empty_cache()
