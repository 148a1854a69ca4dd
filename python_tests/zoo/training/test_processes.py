"""Training in several processes: the gradients of the whole batch, and the same model in each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from deq_zoo.folder import RunFolderError, claimed_folder
from deq_zoo.loop import Trainer
from deq_zoo.measure import PERPLEXITY
from deq_zoo.presets import RunConfig
from deq_zoo.processes import ALONE, GradientAverage, Processes, launched_processes
from deq_zoo.run import run_training
from deq_zoo.task import Outcome, Task
from python_tests.zoo.training.runs import builder, small_config

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch lacks gloo"
)

COUNT = 2
EPOCHS = 3


class Line(Task):
    """Least squares on 9 points, in batches of 4, 4 and 1, so that one share is empty."""

    presets: dict[str, Any] = {}  # noqa: RUF012
    datasets: dict[str, str] = {}  # noqa: RUF012
    measure = PERPLEXITY
    steps_per_epoch = 3

    def __init__(self, processes: Processes = ALONE) -> None:
        self.model = nn.Linear(2, 1, dtype=torch.float64)
        self.unused = nn.Linear(1, 1, dtype=torch.float64)
        self.model.add_module("unused", self.unused)
        self.processes = processes
        self.x = torch.randn(9, 2, generator=torch.Generator().manual_seed(5)).double()

    @classmethod
    def build(
        cls, config: RunConfig, *, data_root: str | None = None, processes: Processes = ALONE
    ) -> Line:
        return cls(processes)

    def batches(self, generator: torch.Generator) -> Iterator[Tensor | None]:
        for batch in torch.randperm(9, generator=generator).split(4):
            share = self.processes.share(batch)
            yield self.x[share] if len(share) else None

    def evaluation_batches(self, split: str) -> Iterator[Tensor]:
        yield self.x

    def run(self, batch: Tensor, *, depth: int | None) -> Outcome:
        return Outcome(loss=self.model(batch).square().mean(), items=len(batch))


def _config() -> RunConfig:
    config = small_config(
        training__epochs=EPOCHS,
        training__pretraining_steps=0,
        training__weight_decay=0.1,
        machine__dtype="float64",
    )
    return replace(config, task="line")


def _train_line(processes: Processes) -> tuple[dict[str, Tensor], list[float]]:
    torch.manual_seed(0)
    task = Line(processes)
    trainer = Trainer(task, _config(), processes=processes)
    losses = [trainer.run_epoch().train.loss for _ in range(EPOCHS)]
    return task.model.state_dict(), losses


def _same_everywhere(state: dict[str, Tensor]) -> None:
    for value in state.values():
        others = [torch.empty_like(value) for _ in range(COUNT)]
        dist.all_gather(others, value)
        for other in others:
            assert torch.equal(value, other)


def _check_line(rank: int) -> None:
    processes = Processes(rank=rank, count=COUNT)
    together, losses = _train_line(processes)
    _same_everywhere(together)
    alone, expected = _train_line(ALONE)
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(losses, expected, rtol=1e-11, atol=0.0)


def _check_first_batch(rank: int) -> None:
    model = nn.Linear(1, 1)
    average = GradientAverage(Processes(rank=rank, count=COUNT), model.parameters())
    if rank == 1:
        with pytest.raises(ValueError, match="an item for each of 2 processes, got none for"):
            average(0)


def _check_run(rank: int, folder: Path) -> None:
    """MDEQ with running statistics and dropout: one model, and resumed with the same bits."""
    config = small_config()
    processes = Processes(rank=rank, count=COUNT)

    def run(out: Path, *, resume: bool = False, every: int = 1) -> Trainer:
        return run_training(
            config,
            out,
            resume=resume,
            checkpoint_every=every,
            processes=processes,
            build=builder(processes=processes),
        )

    whole = run(folder / "whole")
    masks = torch.rand(3)
    gathered = [torch.empty(3) for _ in range(COUNT)]
    dist.all_gather(gathered, masks)
    assert not torch.equal(*gathered), "the processes should drop different channels"
    state = whole.task.model.state_dict()
    _same_everywhere(state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run_epoch", _stopping(Trainer.run_epoch, after=2))
        with pytest.raises(KeyboardInterrupt):
            run(folder / "parts")
    dist.barrier()
    resumed = run(folder / "parts", resume=True)
    for name, value in resumed.task.model.state_dict().items():
        assert torch.equal(value, state[name])
    dist.barrier()
    if rank == 0:
        name = "checkpoint.safetensors"
        assert (folder / "parts" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def _check_folder_in_use(rank: int, folder: Path) -> None:
    """The first process alone writes and knows; the others do not wait for it."""
    processes = Processes(rank=rank, count=COUNT)
    with ExitStack() as held:
        if rank == 0:
            held.enter_context(claimed_folder(folder / "used"))
        message = "another run is writing to" if rank == 0 else "the first process cannot write to"
        with pytest.raises(RunFolderError, match=message):
            run_training(
                small_config(),
                folder / "used",
                processes=processes,
                build=builder(processes=processes),
            )
        dist.barrier()


def _stopping(run_epoch: Any, *, after: int) -> Any:
    def run(trainer: Trainer, **options: Any) -> Any:
        if trainer.epoch == after:
            raise KeyboardInterrupt
        return run_epoch(trainer, **options)

    return run


def _worker(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        WORLD_SIZE=str(COUNT),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    with launched_processes("cpu") as processes:
        assert processes == Processes(rank=rank, count=COUNT)
        _check_line(rank)
        _check_first_batch(rank)
        _check_run(rank, Path(folder))
        _check_folder_in_use(rank, Path(folder))


def test_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, args=(str(tmp_path), port), nprocs=COUNT)


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with launched_processes("cpu") as processes:
        assert processes is ALONE


def test_processes_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ValueError, match="2 processes takes a GPU of its own, but device is cuda:0"),
        launched_processes("cuda:0"),
    ):
        pass
