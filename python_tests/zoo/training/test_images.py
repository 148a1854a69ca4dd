"""MDEQ's presets on data in the real formats, and options that do not fit the data."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from deq_zoo.loop import Trainer
from deq_zoo.registry import run_config
from deq_zoo.tasks.images import load_images
from deq_zoo.tasks.mdeq import MDEQTask
from python_tests.zoo.data.test_cifar import write_cifar10
from python_tests.zoo.data.test_image_folder import CLASSES, write_image_folder

SHORT: dict[str, Any] = {
    "training.epochs": 1,
    "training.batch_size": 8,
    "training.pretraining_steps": 1,
    "training.pretraining_depth": 1,
    "equilibrium.forward_steps": 2,
}
SMALL = {"model.channels": (8, 8), "model.head_channels": (2, 2), "model.final_channels": 8}


@pytest.mark.parametrize("preset", ["cifar10_tiny", "cifar10_tiny_upg"])
def test_cifar10(tmp_path: Path, preset: str) -> None:
    write_cifar10(tmp_path)
    settings = {**SHORT, **SMALL, "training.augmentation": "crop_flip"}
    if preset == "cifar10_tiny_upg":
        del settings["training.pretraining_steps"]
    config = run_config("mdeq", preset=preset, settings=settings)
    task = MDEQTask.build(config, data_root=str(tmp_path))
    metrics = Trainer(task, config).run_epoch()
    assert (metrics.step, task.steps_per_epoch) == (3, 3)
    assert metrics.train.solver_steps == 2.0
    (images, _), *_ = task.evaluation_batches("test")
    assert images.dtype == torch.float32
    assert -2.6 < float(images.min()) < float(images.max()) < 2.8


@pytest.mark.skipif(find_spec("PIL") is None, reason="images are decoded with Pillow")
def test_imagenet(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    settings = {**SHORT, "model.image_size": (32, 32), "training.workers": 0}
    settings |= {**SMALL, "model.stem_downsamplings": 2}
    config = run_config("mdeq", preset="imagenet_small", settings=settings)
    with pytest.raises(ValueError, match=r"has 3 classes, but model\.classes is 1000; set it"):
        MDEQTask.build(config, data_root=str(tmp_path))
    settings["model.classes"] = len(CLASSES)
    settings["training.channels_last"] = True
    config = run_config("mdeq", preset="imagenet_small", settings=settings)
    task = MDEQTask.build(config, data_root=str(tmp_path))
    metrics = Trainer(task, config).run_epoch()
    assert metrics.step == 2
    (images, _), *_ = task.evaluation_batches("validation")
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("preset", "data", "settings", "root", "message"),
    [
        ("digits", None, {}, ".", "the dataset digits is bundled, but data_root is '.'"),
        ("cifar10_tiny", None, {}, None, "cifar10 is read from disk, but data_root is None"),
        ("digits", None, {"training.validation_size": 9}, None, "split of their own"),
        (
            "digits",
            None,
            {"training.augmentation": "resized_crop_flip"},
            None,
            "resized_crop_flip goes with the dataset imagenet",
        ),
        (
            "imagenet_small",
            None,
            {"training.augmentation": "none"},
            ".",
            "got none with imagenet. Set training.augmentation",
        ),
        ("imagenet_small", None, {"model.image_size": (64, 32)}, ".", "must be square"),
    ],
)
def test_options_that_do_not_fit_the_data(
    preset: str, data: str | None, settings: dict[str, Any], root: str | None, message: str
) -> None:
    config = run_config("mdeq", preset=preset, data=data, settings=settings)
    with pytest.raises(ValueError, match=message):
        load_images(config, root)


def test_an_unknown_split() -> None:
    pytest.importorskip("sklearn")
    images = load_images(run_config("mdeq"), None)
    with pytest.raises(ValueError, match="split must be validation or test; got 'train'"):
        images.evaluation_batches("train")
