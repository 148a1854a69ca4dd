"""Sum-form low-rank inverse."""

from deq_kernels.ops.low_rank.op import append_, matvec, rmatvec

__all__ = ["append_", "matvec", "rmatvec"]
