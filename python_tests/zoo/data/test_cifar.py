"""CIFAR-10's binary version, from small files written as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deq_zoo.data import DatasetError, load_cifar10
from deq_zoo.data.cifar import FOLDER, TEST_FILES, TRAIN_FILES


def write_cifar10(root: Path, *, per_file: int = 4) -> list[bytes]:
    """Files of a few images; their records, training first."""
    folder = root / FOLDER
    folder.mkdir(parents=True)
    records = []
    for number, name in enumerate(TRAIN_FILES + TEST_FILES):
        part = [
            bytes([(number + i) % 10]) + bytes((7 * number + i + k) % 251 for k in range(3072))
            for i in range(per_file)
        ]
        (folder / name).write_bytes(b"".join(part))
        records += part
    return records


@pytest.mark.parametrize("inside", [True, False])
def test_what_is_read(tmp_path: Path, inside: bool) -> None:
    records = write_cifar10(tmp_path)
    data = load_cifar10(tmp_path / FOLDER if inside else tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 4, 4)
    assert data.validation is data.test
    for number in (0, 13, 19, 21):
        split, place = (data.train, number) if number < 20 else (data.test, number - 20)
        assert int(split.labels[place]) == records[number][0]
        image = split.images[place]
        assert image.dtype == torch.uint8
        # Red first, row by row.
        assert int(image[0, 0, 0]) == records[number][1]
        assert int(image[0, 1, 0]) == records[number][1 + 32]
        assert int(image[2, 31, 31]) == records[number][3072]


def test_held_out_images(tmp_path: Path) -> None:
    records = write_cifar10(tmp_path)
    data = load_cifar10(tmp_path, validation_size=6, seed=1)
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 6, 4)
    firsts = torch.cat([data.train.images, data.validation.images])[:, 0, 0, 0].tolist()
    assert sorted(firsts) == sorted(record[1] for record in records[:20])
    again, other = (load_cifar10(tmp_path, validation_size=6, seed=s).train for s in (1, 2))
    assert torch.equal(again.images, data.train.images)
    assert not torch.equal(other.images, data.train.images)
    for size in (20, -1):
        with pytest.raises(ValueError, match="must lie in 1 to 19, got"):
            load_cifar10(tmp_path, validation_size=size)


def test_normalised_images(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    data = load_cifar10(tmp_path)
    black = data.normalise(torch.zeros(1, 3, 2, 2))
    expected = torch.tensor([-0.4914 / 0.2023, -0.4822 / 0.1994, -0.4465 / 0.2010])
    torch.testing.assert_close(black[0, :, 0, 0], expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"there is no .*data_batch_3\.bin; unpack cifar-10-binary"),
        (b"", "must hold records of 3073 bytes, got 0 bytes"),
        (bytes(3072), "must hold records of 3073 bytes, got 3072 bytes; it is damaged"),
        (bytes([10]) + bytes(3072), "must hold labels below 10, got 10"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / FOLDER / "data_batch_3.bin"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        load_cifar10(tmp_path)
