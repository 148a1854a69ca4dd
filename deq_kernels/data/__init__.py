"""Datasets: bundled ones, and the real formats of others, read from disk."""

from deq_kernels.data.cifar import load_cifar10
from deq_kernels.data.corpus import Corpus, Streams
from deq_kernels.data.digits import load_digits
from deq_kernels.data.image_folder import load_image_folder
from deq_kernels.data.ngrams import KneserNeyBigram, Unigram
from deq_kernels.data.pydoc_topics import load_pydoc_topics
from deq_kernels.data.split import Split, Splits
from deq_kernels.data.vocabulary import Vocabulary
from deq_kernels.data.wikitext import WikiTextError, load_wikitext

__all__ = [
    "Corpus",
    "KneserNeyBigram",
    "Split",
    "Splits",
    "Streams",
    "Unigram",
    "Vocabulary",
    "WikiTextError",
    "load_cifar10",
    "load_digits",
    "load_image_folder",
    "load_pydoc_topics",
    "load_wikitext",
]
