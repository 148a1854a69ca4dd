"""IGNN, the implicit graph neural network."""

from deq_kernels.models.ignn.config import IGNNConfig
from deq_kernels.models.ignn.graphs import Graphs
from deq_kernels.models.ignn.layer import ImplicitGraphLayer
from deq_kernels.models.ignn.model import IGNN, radius_of

__all__ = ["IGNN", "Graphs", "IGNNConfig", "ImplicitGraphLayer", "radius_of"]
