"""Cycles of restarted GMRES for affine maps."""

from deq_kernels.ops.gmres.op import Cycles, bind_step, step_

__all__ = ["Cycles", "bind_step", "step_"]
