"""CIFAR-10 in its binary version (`cifar-10-binary.tar.gz`), which needs no pickle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from deq_zoo.data.errors import DatasetError
from deq_zoo.data.split import Split, Splits, hold_out

FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)
IMAGE_SHAPE = (3, 32, 32)
CLASSES = 10
RECORD = 1 + 3 * 32 * 32
"""Bytes of one image: its label, then red, green and blue, each row by row."""

# Of the 50,000 training images, as widely used.
MEAN = tuple(255 * value for value in (0.4914, 0.4822, 0.4465))
STD = tuple(255 * value for value in (0.2023, 0.1994, 0.2010))


def load_cifar10(root: str | Path, *, validation_size: int = 0, seed: int = 0) -> Splits:
    """Read `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`.

    Args:
        root: the folder that holds the files, or the folder `cifar-10-batches-bin` with them.
        validation_size: training images to hold out; 0: the validation images are the test images,
            as in the papers.
        seed: draws the images that are held out.

    Returns:
        images [N, 3, 32, 32] uint8 and labels [N] int64, with the mean and std of the channels.

    Raises:
        DatasetError: a file is missing, or not what CIFAR-10 consists of.
        OSError: a file cannot be read.
        ValueError: there are not that many images to hold out.
    """
    folder = Path(root)
    if (folder / FOLDER).is_dir():
        folder = folder / FOLDER
    train, test = _read(folder, TRAIN_FILES), _read(folder, TEST_FILES)
    validation = test
    if validation_size:
        train, validation = hold_out(train, validation_size, seed=seed)
    return Splits(train=train, validation=validation, test=test, mean=MEAN, std=STD)


def _read(folder: Path, names: tuple[str, ...]) -> Split:
    parts = [_read_file(folder / name) for name in names]
    return Split(
        torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    )


def _read_file(path: Path) -> Split:
    if not path.is_file():
        raise DatasetError(
            f"CIFAR-10 is read from its binary version, but there is no {path}; unpack "
            "cifar-10-binary.tar.gz and name its folder"
        )
    data = np.fromfile(path, dtype=np.uint8)
    if len(data) == 0 or len(data) % RECORD:
        raise DatasetError(
            f"{path} must hold records of {RECORD} bytes, got {len(data)} bytes; it is damaged, "
            "or not of CIFAR-10's binary version"
        )
    records = torch.from_numpy(data.reshape(-1, RECORD))
    labels = records[:, 0].long()
    if int(labels.max()) >= CLASSES:
        raise DatasetError(
            f"{path} must hold labels below {CLASSES}, got {int(labels.max())}; it is damaged, or "
            "not of CIFAR-10's binary version"
        )
    return Split(records[:, 1:].reshape(-1, *IMAGE_SHAPE).clone(), labels)
