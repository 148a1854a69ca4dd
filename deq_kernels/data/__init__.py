"""Datasets: bundled or generated ones, and the real formats of others, read from disk."""

from deq_kernels.data.amazon import load_amazon
from deq_kernels.data.chains import generate_chains
from deq_kernels.data.cifar import load_cifar10
from deq_kernels.data.digits import load_digits
from deq_kernels.data.errors import DatasetError
from deq_kernels.data.graphs import Graphs, GraphSplits
from deq_kernels.data.image_folder import load_image_folder
from deq_kernels.data.karate import load_karate
from deq_kernels.data.ppi import load_ppi
from deq_kernels.data.split import Split, Splits
from deq_kernels.data.tu import load_tu, tu_splits

__all__ = [
    "DatasetError",
    "GraphSplits",
    "Graphs",
    "Split",
    "Splits",
    "generate_chains",
    "load_amazon",
    "load_cifar10",
    "load_digits",
    "load_image_folder",
    "load_karate",
    "load_ppi",
    "load_tu",
    "tu_splits",
]
