"""The DEQ-Transformer predicts the next word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from deq_kernels.models.transformer import DEQTransformer, Memory, TransformerConfig
from deq_zoo.choices import build_gradient, build_solver
from deq_zoo.data import (
    Corpus,
    KneserNeyBigram,
    Streams,
    Unigram,
    load_pydoc_topics,
    load_wikitext,
)
from deq_zoo.measure import PERPLEXITY
from deq_zoo.presets import RunConfig
from deq_zoo.processes import ALONE, Processes
from deq_zoo.recipes.transformer import PRESETS, TransformerTraining
from deq_zoo.task import Outcome, Task

DATASETS = {
    "pydoc": "the language reference in Python's pydoc_data, word by word",
    "wikitext103": "WikiText-103: a folder with wiki.train.tokens, wiki.valid.tokens and "
    "wiki.test.tokens",
}

Batch = tuple[Tensor, Tensor]


class TransformerTask(Task):
    """Mean -log p of the next word, in streams whose memory goes on from batch to batch.

    Training batches come in the order of the text, and the memory is empty at the start of every
    epoch and of every evaluation.

    Args:
        model: on the device of the config.
        corpus: the text.
        config: of the run.
        processes: that train together, each with its share of the streams.

    Raises:
        ValueError: a part of the text is too short for its streams, or there are fewer streams
            than processes.
    """

    presets = PRESETS
    datasets = DATASETS
    measure = PERPLEXITY

    def __init__(
        self,
        model: DEQTransformer,
        corpus: Corpus,
        config: RunConfig,
        processes: Processes = ALONE,
    ) -> None:
        training, segment = config.training, model.config.segment
        assert isinstance(training, TransformerTraining)
        if training.batch_size < processes.count:
            raise ValueError(
                "each process needs a stream of its own; got batch_size = "
                f"{training.batch_size} for {processes.count} processes. Use a larger batch_size "
                "or fewer processes."
            )
        self.model: DEQTransformer = model
        self.corpus = corpus
        device = config.machine.find_device()
        self.rows = processes.share(torch.arange(training.batch_size)).to(device)
        # On the device as a whole, so that no step waits for a copy; WikiText-103 takes 0.4 GB.
        self.train = Streams(corpus.train.to(device), training.batch_size, segment)
        held_out = {"validation": corpus.validation, "test": corpus.test}
        self.held_out = {
            split: Streams(tokens.to(device), training.evaluation_batch_size, segment)
            for split, tokens in held_out.items()
        }
        self.steps_per_epoch = len(self.train)
        self._memory: Memory | None = None

    @classmethod
    def build(
        cls, config: RunConfig, *, data_root: str | None = None, processes: Processes = ALONE
    ) -> TransformerTask:
        """See `Task.build`; the vocabulary of the model must be that of the text."""
        corpus = load_corpus(config.data, data_root)
        if config.model.vocabulary != len(corpus.vocabulary):
            raise ValueError(
                f"the text has {len(corpus.vocabulary)} different words, so model.vocabulary must "
                f"be that; got {config.model.vocabulary}. Set it, and model.cutoffs below it, or "
                "name the text that the preset is for."
            )
        model = DEQTransformer(
            config.model,
            solver=build_solver(config.equilibrium),
            gradient=build_gradient(config.equilibrium),
            warm_start=config.equilibrium.warm_start,
        )
        model = model.to(config.machine.find_device(), config.machine.parameter_dtype)
        return cls(model, corpus, config, processes)

    @classmethod
    def model_for(cls, model: TransformerConfig, data: str) -> TransformerConfig:
        """With the vocabulary of the text that comes with Python, which releases differ in."""
        if data != "pydoc":
            return model
        return replace(model, vocabulary=len(load_pydoc_topics().vocabulary))

    def batches(self, generator: torch.Generator) -> Iterator[Batch]:
        """Words and the words after them, on the device; nothing is random."""
        for words, following in self.train:
            yield words[self.rows], following[self.rows]

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """The same of a held-out part."""
        yield from self.held_out[split]

    def run(self, batch: Batch, *, depth: int | None) -> Outcome:
        """Mean -log p of the next words, after what the streams have kept."""
        words, following = batch
        output = self.model(words, following, memory=self._memory, pretrain_steps=depth)
        self._memory = output.memory
        assert output.nll is not None
        return Outcome(
            loss=output.nll.mean(),
            items=following.numel(),
            solution=self.model.last_solution if depth is None else None,
        )

    def start_epoch(self) -> None:
        """Empty the memory."""
        self._memory = None

    def start_evaluation(self, split: str) -> None:
        """Empty the memory."""
        self._memory = None

    def describe(self) -> str:
        """Parameters, words, and how well models of one and of two words do in validation."""
        perplexities = self.ngram_perplexities("validation")
        return (
            f"{super().describe()}, {len(self.corpus.train):,} training tokens of "
            f"{len(self.corpus.vocabulary):,} kinds; validation perplexity of a unigram model "
            f"{perplexities['unigram']:.1f}, of a Kneser–Ney bigram model "
            f"{perplexities['kneser_ney_bigram']:.1f}"
        )

    def ngram_perplexities(self, split: str) -> dict[str, float]:
        """Of models fitted to the training text, on the very words that `evaluate` predicts."""
        pairs = [(x.flatten(), y.flatten()) for x, y in self.held_out[split]]
        words, following = (torch.cat(part).cpu() for part in zip(*pairs, strict=True))
        size = len(self.corpus.vocabulary)
        models: dict[str, Unigram | KneserNeyBigram] = {
            "unigram": Unigram.fit(self.corpus.train, size),
            "kneser_ney_bigram": KneserNeyBigram.fit(self.corpus.train, size),
        }
        return {
            name: float(model.nll(words, following).mean().exp()) for name, model in models.items()
        }


def load_corpus(data: str, root: str | None) -> Corpus:
    """The text that the config names.

    Raises:
        ValueError: a folder is needed and not given, or given and not needed; or a file is damaged.
        OSError: a file cannot be read.
        ImportError: this Python was installed without `pydoc_data`.
    """
    if data == "wikitext103":
        if root is None:
            raise ValueError(
                "wikitext103 is read from a folder that holds wiki.train.tokens and so on; name it "
                "as data_root, or with --data-root"
            )
        return load_wikitext(root)
    if root is not None:
        raise ValueError(f"the text {data} comes with Python, and needs no folder; got {root}")
    return load_pydoc_topics()
