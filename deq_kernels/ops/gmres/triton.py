"""The step of GMRES with Triton: its sums over the state are Triton's, the rest is PyTorch's.

Formulas: docs/algebra.md, section 5. Reference: deq_kernels/ops/gmres/reference.py.
"""

from __future__ import annotations

from functools import partial

from deq_kernels.ops.gmres.reference import Products, take_step_
from deq_kernels.ops.low_rank import triton_halves

KERNELS = {
    "gmres_step_": partial(
        take_step_, products=Products(triton_halves.dots, triton_halves.combine)
    ),
}
"""Kernels of the family by the name of their op."""
