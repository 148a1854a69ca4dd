"""Reference models built on the DEQ layer."""

from deq_kernels.models.mdeq import MDEQ, MDEQConfig

__all__ = ["MDEQ", "MDEQConfig"]
