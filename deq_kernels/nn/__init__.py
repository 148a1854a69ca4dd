"""Modules a deep equilibrium cell is built from."""

from deq_kernels.nn.dropout import VariationalDropout

__all__ = ["VariationalDropout"]
