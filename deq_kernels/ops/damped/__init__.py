"""Damped fixed-point steps and Neumann accumulation."""

from deq_kernels.ops.damped.op import neumann_step_, new_scratch, step_

__all__ = ["neumann_step_", "new_scratch", "step_"]
