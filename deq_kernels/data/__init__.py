"""Datasets that need no download."""

from deq_kernels.data.digits import Digits, load_digits
from deq_kernels.data.split import Split

__all__ = ["Digits", "Split", "load_digits"]
