"""Reference models built on the DEQ layer and the structured cells."""

from deq_kernels.models.ignn import IGNN, IGNNConfig
from deq_kernels.models.mdeq import MDEQ, MDEQConfig

__all__ = ["IGNN", "MDEQ", "IGNNConfig", "MDEQConfig"]
