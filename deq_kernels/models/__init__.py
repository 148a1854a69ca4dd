"""Reference models built on the DEQ layer and the structured cells."""

from deq_kernels.models.ignn import IGNN, IGNNConfig
from deq_kernels.models.mdeq import MDEQ, MDEQConfig
from deq_kernels.models.transformer import DEQTransformer, TransformerConfig

__all__ = ["IGNN", "MDEQ", "DEQTransformer", "IGNNConfig", "MDEQConfig", "TransformerConfig"]
