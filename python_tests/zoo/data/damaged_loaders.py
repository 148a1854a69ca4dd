"""Load damaged datasets and checkpoints under limits of memory and time; see `test_damaged.py`."""

from __future__ import annotations

import json
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.suites import format_markdown, load_report
from deq_zoo.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from deq_zoo.data import (
    DatasetError,
    load_amazon,
    load_cifar10,
    load_image_folder,
    load_ppi,
    load_tu,
    load_wikitext,
)
from deq_zoo.metrics import read_metrics
from python_tests.damages import survives
from python_tests.zoo.data.test_amazon import FILES as AMAZON
from python_tests.zoo.data.test_tu import FILES as TU

ROOT = Path(__file__).resolve().parents[3]
MEMORY = 3 * 2**30
"""Beyond what importing torch maps."""
SECONDS = 300
COUNT = 80


def write_tu(folder: Path) -> None:
    for name, text in TU.items():
        (folder / f"TINY_{name}.txt").write_text(text, encoding="utf-8")


def write_amazon(folder: Path) -> None:
    for name, text in AMAZON.items():
        (folder / name).write_text(text, encoding="utf-8")


def write_ppi(folder: Path) -> None:
    """Both forms, of which the one graph goes first."""
    for split in ("train", "valid", "test"):
        links = [{"source": source, "target": source ^ 1} for source in range(4)]
        graph = {"directed": False, "nodes": [], "links": links}
        (folder / f"{split}_graph.json").write_text(json.dumps(graph), encoding="utf-8")
        np.save(folder / f"{split}_feats.npy", np.arange(8.0).reshape(4, 2))
        np.save(folder / f"{split}_labels.npy", np.eye(4)[:, :3])
        np.save(folder / f"{split}_graph_id.npy", np.array([1, 1, 2, 2]))


def write_ppi_in_one(folder: Path) -> None:
    np.save(folder / "feats.npy", np.arange(8.0).reshape(4, 2))
    rows = {"indptr": np.arange(5), "indices": np.array([1, 0, 3, 2]), "shape": np.array([4, 4])}
    for name in ("adj_full", "adj_train"):
        np.savez_compressed(folder / f"{name}.npz", **rows, data=np.ones(4))
    labels = {str(node): [node % 2, 1] for node in range(4)}
    (folder / "class_map.json").write_text(json.dumps(labels), encoding="utf-8")
    role = json.dumps({"tr": [0, 1], "va": [2], "te": [3]})
    (folder / "role.json").write_text(role, encoding="utf-8")


def write_cifar(folder: Path) -> None:
    records = np.zeros((2, 3073), np.uint8)
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        (folder / name).write_bytes(records.tobytes())


def write_images(folder: Path) -> None:
    from PIL import Image

    for number, part in enumerate(("train/a", "train/b", "val/a", "val/b")):
        (folder / part).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 255, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / part / ("1.png", "1.jpg")[number % 2])


def load_images(folder: Path) -> None:
    splits = load_image_folder(folder, size=8)
    for part in (splits.train, splits.test):
        list(part.batches(2))


def write_wikitext(folder: Path) -> None:
    text = " \n = Title = \n \n One word and <unk> . \n"
    for part in ("train", "valid", "test"):
        (folder / f"wiki.{part}.tokens").write_text(text, encoding="utf-8")


def write_checkpoint(folder: Path) -> None:
    checkpoint = Checkpoint(
        epoch=2,
        step=7,
        config={"task": "ignn", "training.epochs": 3},
        model={"weight": torch.ones(3, 4), "bias": torch.zeros(3)},
        optimizer={
            "state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.ones(3, 4)}},
            "param_groups": [{"lr": 0.1, "params": [0, 1]}],
        },
        rng={"run": torch.arange(16, dtype=torch.uint8)},
    )
    save_checkpoint(folder / "checkpoint.safetensors", checkpoint)


def write_metrics(folder: Path) -> None:
    part = {"loss": 0.5, "accuracy": 0.25, "solver_steps": None}
    lines = [
        json.dumps(
            {
                "epoch": epoch,
                "step": 3,
                "phase": "equilibrium",
                "learning_rate": 0.1,
                "seconds": 1.0,
                "train": part,
                "validation": part,
            }
        )
        for epoch in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_report(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes((ROOT / "benchmarks" / "results" / name).read_bytes())

    return write


def render(name: str) -> Callable[[Path], object]:
    """As `bench --render` does, to what can be printed."""
    return lambda folder: format_markdown(load_report(folder / name), name).encode()


class Refused(Exception):
    """What a loader may raise."""


def refusing(load: Callable[[Path], object], *kinds: type[Exception]) -> Callable[[Path], object]:
    def loaded(folder: Path) -> object:
        try:
            return load(folder)
        except kinds as error:
            raise Refused from error

    return loaded


Case = tuple[Callable[[Path], None], Callable[[Path], object]]
CASES: dict[str, Case] = {
    "tu": (write_tu, refusing(load_tu, DatasetError)),
    "tu both": (write_tu, refusing(lambda path: load_tu(path, features="both"), DatasetError)),
    "amazon": (write_amazon, refusing(load_amazon, DatasetError)),
    "ppi": (write_ppi, refusing(load_ppi, DatasetError)),
    "ppi in one": (write_ppi_in_one, refusing(load_ppi, DatasetError)),
    "cifar": (write_cifar, refusing(load_cifar10, DatasetError)),
    "images": (write_images, refusing(load_images, DatasetError)),
    "wikitext": (write_wikitext, refusing(load_wikitext, DatasetError)),
    "checkpoint": (
        write_checkpoint,
        refusing(lambda path: load_checkpoint(path / "checkpoint.safetensors"), CheckpointError),
    ),
    "metrics": (
        write_metrics,
        refusing(lambda path: read_metrics(path / "metrics.jsonl"), OSError, ValueError),
    ),
    **{
        name: (write_report(name), refusing(render(name), OSError, ValueError))
        for name in ("cpu-float32.json", "cpu-cells-float32.json", "cpu-train-float32.json")
    },
}


def main(folder: Path) -> None:
    """Every case, under limits of the whole process."""
    warnings.simplefilter("error")
    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = mapped * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    for name, (write, load) in CASES.items():
        whole = folder / name / "whole"
        whole.mkdir(parents=True)
        write(whole)
        load(whole)
        print(name, flush=True)
        survives(whole, folder / name / "work", load, Refused, COUNT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
