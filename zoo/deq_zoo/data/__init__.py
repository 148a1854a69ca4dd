"""Datasets: bundled or generated ones, and the real formats of others, read from disk."""

from deq_kernels.models.ignn import Graphs
from deq_zoo.data.amazon import load_amazon
from deq_zoo.data.chains import generate_chains
from deq_zoo.data.cifar import load_cifar10
from deq_zoo.data.corpus import Corpus, Streams
from deq_zoo.data.digits import load_digits
from deq_zoo.data.errors import DatasetError
from deq_zoo.data.graph_splits import GraphSplits
from deq_zoo.data.image_folder import load_image_folder
from deq_zoo.data.karate import load_karate
from deq_zoo.data.ngrams import KneserNeyBigram, Unigram
from deq_zoo.data.ppi import load_ppi
from deq_zoo.data.pydoc_topics import load_pydoc_topics
from deq_zoo.data.split import Split, Splits
from deq_zoo.data.tu import load_tu, tu_splits
from deq_zoo.data.vocabulary import Vocabulary
from deq_zoo.data.wikitext import load_wikitext

__all__ = [
    "Corpus",
    "DatasetError",
    "GraphSplits",
    "Graphs",
    "KneserNeyBigram",
    "Split",
    "Splits",
    "Streams",
    "Unigram",
    "Vocabulary",
    "generate_chains",
    "load_amazon",
    "load_cifar10",
    "load_digits",
    "load_image_folder",
    "load_karate",
    "load_ppi",
    "load_pydoc_topics",
    "load_tu",
    "load_wikitext",
    "tu_splits",
]
