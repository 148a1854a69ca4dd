"""MDEQ, the multiscale deep equilibrium model for images."""

from deq_kernels.models.mdeq.cell import MDEQCell
from deq_kernels.models.mdeq.config import MDEQConfig
from deq_kernels.models.mdeq.model import MDEQ

__all__ = ["MDEQ", "MDEQCell", "MDEQConfig"]
