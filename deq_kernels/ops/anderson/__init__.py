"""Anderson acceleration over a window of stored changes."""

from deq_kernels.ops.anderson.op import Window, bind_step, step_

__all__ = ["Window", "bind_step", "step_"]
