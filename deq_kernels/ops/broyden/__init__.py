"""Good Broyden with one stored vector per step."""

from deq_kernels.ops.broyden.op import History, matvec, step_

__all__ = ["History", "matvec", "step_"]
