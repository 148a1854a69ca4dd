"""The DEQ-Transformer, a deep equilibrium language model."""

from deq_kernels.models.transformer.cell import TransformerCell
from deq_kernels.models.transformer.config import TransformerConfig
from deq_kernels.models.transformer.memory import Memory
from deq_kernels.models.transformer.model import DEQTransformer, TransformerOutput

__all__ = ["DEQTransformer", "Memory", "TransformerCell", "TransformerConfig", "TransformerOutput"]
