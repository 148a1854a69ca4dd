"""Training the DEQ-Transformer: memory, resuming, baselines, Jacobian regularisation, refusals."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deq_kernels.models import DEQTransformer, TransformerConfig
from deq_kernels.models.transformer.config import PRESETS as SHAPES
from deq_zoo.choices import build_gradient, build_solver
from deq_zoo.data import Corpus, DatasetError, Vocabulary, load_pydoc_topics
from deq_zoo.loop import Trainer
from deq_zoo.metrics import EpochMetrics
from deq_zoo.presets import RunConfig
from deq_zoo.processes import Processes
from deq_zoo.recipes.transformer import PRESETS
from deq_zoo.registry import run_config
from deq_zoo.tasks.transformer import TransformerTask, load_corpus

SETTINGS: dict[str, Any] = {
    "model.width": 16,
    "model.heads": 2,
    "model.inner_width": 32,
    "model.segment": 8,
    "model.memory": 8,
    "model.init_std": 0.1,
    "model.dropout": 0.2,
    "training.batch_size": 16,
    "training.epochs": 2,
    "training.pretraining_steps": 10,
    "training.warmup_steps": 0,
    "training.learning_rate": 5e-3,
    "equilibrium.forward_steps": 6,
    "training.jacobian_weight": 0.0,
    "training.jacobian_frequency": 1.0,
}
TEXT = load_pydoc_topics(least=20)


def _config(**changes: Any) -> RunConfig:
    named = {name.replace("__", ".", 1): value for name, value in changes.items()}
    return run_config("transformer", preset="pydoc", settings={**SETTINGS, **named})


def _corpus(train: int = 1281, held_out: int = 257) -> Corpus:
    return replace(TEXT, train=TEXT.train[:train], validation=TEXT.validation[:held_out])


def _task(
    config: RunConfig, corpus: Corpus | None = None, processes: Processes | None = None
) -> TransformerTask:
    torch.manual_seed(config.training.seed)
    corpus = _corpus() if corpus is None else corpus
    shape = replace(config.model, vocabulary=len(corpus.vocabulary))
    model = DEQTransformer(
        shape,
        solver=build_solver(config.equilibrium),
        gradient=build_gradient(config.equilibrium),
    )
    return TransformerTask(model, corpus, config, processes or Processes())


def _train(config: RunConfig, corpus: Corpus | None = None) -> list[EpochMetrics]:
    trainer = Trainer(_task(config, corpus), config)
    return [trainer.run_epoch() for _ in range(config.training.epochs)]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_shape_with_a_recipe(name: str) -> None:
    config = run_config("transformer", preset=name)
    assert config.data == ("pydoc" if name == "pydoc" else "wikitext103")
    assert set(SHAPES) <= {*PRESETS}
    if name != "pydoc":
        assert config.model.vocabulary == 267_735
        penalised = config.training.jacobian_weight > 0
        assert penalised == ("jr" in name)
        assert (config.equilibrium.gradient == "unrolled") == ("upg" in name)


def test_the_model_of_the_bundled_text_has_its_vocabulary() -> None:
    config = run_config("transformer")
    assert config.preset == "pydoc"
    assert config.model.vocabulary == len(load_pydoc_topics().vocabulary)


def _alphabet() -> Corpus:
    """One word after another, always the same: a bigram model knows, and a unigram does not."""
    vocabulary = Vocabulary.of_counts(Counter({"a": 9, "b": 8, "c": 7, "d": 6}))
    text = torch.arange(1200, dtype=torch.int32) % 4
    return Corpus(vocabulary=vocabulary, train=text, validation=text, test=text)


def test_training_beats_what_knows_no_context() -> None:
    config = _config(training__epochs=4, training__learning_rate=2e-2, model__init_std=0.3)
    task = _task(config, _alphabet())
    trainer = Trainer(task, config)
    history = [trainer.run_epoch() for _ in range(4)]
    assert (history[0].phase, history[-1].phase) == ("pretrain", "equilibrium")
    assert history[-1].validation.value < 0.8 * task.ngram_perplexities("test")["unigram"]
    assert 1.0 <= (history[-1].validation.solver_steps or 0.0) <= 6.0


def test_resuming_gives_the_same_bits() -> None:
    config = _config(model__dropout=0.2, training__jacobian_weight=0.1)
    corpus = _corpus(train=641, held_out=129)
    whole = Trainer(_task(config, corpus), config)
    first = whole.run_epoch()
    saved = whole.checkpoint()
    # The tensors of a checkpoint are live, and training goes on.
    saved = replace(saved, model={k: v.clone() for k, v in saved.model.items()})
    optimizer = {
        index: {name: value.clone() for name, value in state.items()}
        for index, state in saved.optimizer["state"].items()
    }
    saved = replace(saved, optimizer={**saved.optimizer, "state": optimizer})
    second = whole.run_epoch()
    resumed = Trainer(_task(config, corpus), config)
    resumed.restore(saved, history=[first])
    again = resumed.run_epoch()
    assert (again.train, again.validation) == (second.train, second.validation)
    for mine, theirs in zip(
        resumed.task.model.parameters(), whole.task.model.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.filterwarnings("ignore::deq_kernels.UnconvergedWarning")  # an untrained model
def test_memory_goes_on_within_an_epoch_and_starts_empty() -> None:
    task = _task(_config())
    task.model.eval()
    generator = torch.Generator()
    with torch.no_grad():
        task.start_epoch()
        losses = [task.run(batch, depth=None).loss for batch in task.batches(generator)]
        task.start_epoch()
        again = [task.run(batch, depth=None).loss for batch in task.batches(generator)]
        without = []
        for batch in task.batches(generator):
            task.start_evaluation("validation")
            without.append(task.run(batch, depth=None).loss)
    assert torch.equal(torch.stack(losses), torch.stack(again))
    assert losses[0] == without[0]
    assert all(a != b for a, b in zip(losses[1:], without[1:], strict=True))


def test_the_baselines_predict_what_the_model_predicts() -> None:
    task = _task(_config(), _alphabet())
    items = sum(task.run(b, depth=1).items for b in task.evaluation_batches("validation"))
    assert items == 1199 // 8 * 8
    perplexities = task.ngram_perplexities("validation")
    assert perplexities["unigram"] == pytest.approx(4.0, rel=0.01)
    assert perplexities["kneser_ney_bigram"] < 1.01
    line = task.describe()
    assert "1,200 training tokens of 6 kinds" in line
    assert "unigram model 4.0" in line


def test_jacobian_regularisation_shortens_solves() -> None:
    """At the published size of effect this takes minutes; a tight tolerance shows it early."""
    changes = {
        "equilibrium__forward_steps": 40,
        "equilibrium__rtol": 1e-5,
        "model__init_std": 0.1,
        "training__learning_rate": 1e-2,
        "training__pretraining_steps": 20,
        "training__seed": 1,
    }
    steps = []
    for weight in (0.0, 5.0):
        config = _config(**changes, training__jacobian_weight=weight)
        last = _train(config, _corpus(train=2561))[-1]
        assert last.validation.converged == 1.0
        assert last.validation.solver_steps is not None
        steps.append(last.validation.solver_steps)
    assert steps[1] < 0.95 * steps[0]


def test_half_precision_of_autocast() -> None:
    config = _config(machine__dtype="bfloat16", training__epochs=1)
    metrics = _train(config, _corpus(train=641, held_out=129))[-1]
    assert metrics.train.loss < 6.0


def test_processes_share_the_streams() -> None:
    config = _config()
    generator = torch.Generator()
    whole = next(iter(_task(config).batches(generator)))[0]
    parts = [
        next(iter(_task(config, processes=Processes(rank, 3)).batches(generator)))[0]
        for rank in range(3)
    ]
    assert [len(part) for part in parts] == [6, 5, 5]
    for rank, part in enumerate(parts):
        assert torch.equal(part, whole[rank::3])


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size = 2 for 3 processes"):
        _task(_config(training__batch_size=2), processes=Processes(0, 3))
    with pytest.raises(ValueError, match="read from a folder that holds wiki"):
        load_corpus("wikitext103", None)
    with pytest.raises(ValueError, match="comes with Python, and needs no folder"):
        load_corpus("pydoc", str(tmp_path))
    with pytest.raises(DatasetError, match=r"lacks wiki\.train\.tokens"):
        load_corpus("wikitext103", str(tmp_path))
    with pytest.raises(ValueError, match=r"so model\.vocabulary must be that; got 77"):
        TransformerTask.build(_config(model__vocabulary=77))
    with pytest.raises(ValueError, match="evaluation_batch_size must be a whole number"):
        _config(training__evaluation_batch_size=0)


def test_wikitext_from_a_folder(tmp_path: Path) -> None:
    text = " \n = Film = \n \n" + " The film starred the actor . \n" * 40
    for name in ("train", "valid", "test"):
        (tmp_path / f"wiki.{name}.tokens").write_text(text)
    settings = {**SETTINGS, "model.vocabulary": 10, "model.cutoffs": (8,), "training.epochs": 1}
    config = run_config(
        "transformer", preset="wikitext103_base", data="wikitext103", settings=settings
    )
    assert isinstance(config.model, TransformerConfig)
    task = TransformerTask.build(config, data_root=str(tmp_path))
    assert Trainer(task, config).run_epoch().validation.loss < 3.0
