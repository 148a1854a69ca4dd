"""What TensorBoard is given, where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from deq_zoo import tensorboard
from deq_zoo.metrics import EpochMetrics, PartMetrics
from deq_zoo.tensorboard import TensorBoard

METRICS = EpochMetrics(
    epoch=2,
    step=46,
    phase="equilibrium",
    learning_rate=0.1,
    seconds=1.0,
    train=PartMetrics(
        loss=0.5, measure="accuracy", value=0.75, jacobian_penalty=0.25, solver_steps=9.0
    ),
    validation=PartMetrics(loss=1.5, measure="accuracy", value=0.5),
)


class Writer:
    """Stands for `SummaryWriter`."""

    def __init__(self, folder: str, *, purge_step: int) -> None:
        self.folder, self.purge_step = folder, purge_step
        self.points: dict[str, tuple[float, int]] = {}
        self.closed = False
        WRITERS.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.points[name] = (value, step)

    def flush(self) -> None:
        assert self.points

    def close(self) -> None:
        self.closed = True


WRITERS: list[Writer] = []


def test_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: object())
    board = TensorBoard(tmp_path / "board", step=23)
    board.write(METRICS)
    board.close()
    (writer,) = WRITERS
    assert (writer.folder, writer.purge_step, writer.closed) == (str(tmp_path / "board"), 24, True)
    assert writer.points == {
        "train/loss": (0.5, 46),
        "train/accuracy": (0.75, 46),
        "train/jacobian_penalty": (0.25, 46),
        "train/solver_steps": (9.0, 46),
        "validation/loss": (1.5, 46),
        "validation/accuracy": (0.5, 46),
        "learning_rate": (0.1, 46),
    }


def test_nothing_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    board = TensorBoard(tmp_path / "board")
    board.write(METRICS)
    board.close()
    assert list(tmp_path.iterdir()) == []
