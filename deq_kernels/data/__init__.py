"""Datasets: read from files in the formats they are published in, bundled, or generated."""

from deq_kernels.data.amazon import load_amazon
from deq_kernels.data.chains import generate_chains
from deq_kernels.data.digits import Digits, load_digits
from deq_kernels.data.errors import DatasetError
from deq_kernels.data.graphs import Graphs, GraphSplits
from deq_kernels.data.karate import load_karate
from deq_kernels.data.ppi import load_ppi
from deq_kernels.data.split import Split
from deq_kernels.data.tu import load_tu, tu_splits

__all__ = [
    "DatasetError",
    "Digits",
    "GraphSplits",
    "Graphs",
    "Split",
    "generate_chains",
    "load_amazon",
    "load_digits",
    "load_karate",
    "load_ppi",
    "load_tu",
    "tu_splits",
]
