"""Good Broyden with one stored vector per step."""

from deq_kernels.ops.broyden.op import History, bind_step, matvec, step_

__all__ = ["History", "bind_step", "matvec", "step_"]
