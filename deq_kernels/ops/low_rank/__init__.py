"""Sum-form low-rank inverse."""

from deq_kernels.ops.low_rank.op import append_, combine, dots, matvec, project_out_, rmatvec

__all__ = ["append_", "combine", "dots", "matvec", "project_out_", "rmatvec"]
