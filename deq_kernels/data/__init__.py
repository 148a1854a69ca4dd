"""Datasets: small real ones that need no download, and readers of the usual files."""

from deq_kernels.data.corpus import Corpus, Streams
from deq_kernels.data.digits import Digits, load_digits
from deq_kernels.data.ngrams import KneserNeyBigram, Unigram
from deq_kernels.data.pydoc_topics import load_pydoc_topics
from deq_kernels.data.split import Split
from deq_kernels.data.vocabulary import Vocabulary
from deq_kernels.data.wikitext import WikiTextError, load_wikitext

__all__ = [
    "Corpus",
    "Digits",
    "KneserNeyBigram",
    "Split",
    "Streams",
    "Unigram",
    "Vocabulary",
    "WikiTextError",
    "load_digits",
    "load_pydoc_topics",
    "load_wikitext",
]
