"""Reference models built on the DEQ layer."""

from deq_kernels.models.mdeq import MDEQ, MDEQConfig
from deq_kernels.models.transformer import DEQTransformer, TransformerConfig

__all__ = ["MDEQ", "DEQTransformer", "MDEQConfig", "TransformerConfig"]
