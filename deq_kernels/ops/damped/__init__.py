"""Damped fixed-point steps and Neumann accumulation."""

from deq_kernels.ops.damped.op import bind_step, neumann_step_, new_scratch, step_

__all__ = ["bind_step", "neumann_step_", "new_scratch", "step_"]
