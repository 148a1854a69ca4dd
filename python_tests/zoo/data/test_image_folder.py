"""Folders of JPEG files, as ImageNet's are."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from deq_zoo.data import DatasetError, load_image_folder
from deq_zoo.data.image_folder import read_image

pytestmark = pytest.mark.skipif(find_spec("PIL") is None, reason="images are decoded with Pillow")

CLASSES = ("n01440764", "n01443537", "n02102040")


def write_image_folder(root: Path, *, per_class: int = 3, size: int = 40) -> None:
    """Noise in a colour of each class."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for label, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                shape = (size + 8 * number, size + 16, 3)
                pixels = generator.integers(0, 60, shape, dtype=np.uint8)
                pixels[..., label] += 150
                suffix = ("JPEG", "jpg", "png")[number % 3]
                Image.fromarray(pixels).save(folder / f"{name}_{number}.{suffix}")


def test_what_is_read(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "train" / CLASSES[0] / "notes.txt").write_text("no image")
    data = load_image_folder(tmp_path, size=24)
    assert data.classes == CLASSES
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 9, 9)
    assert data.validation is data.test
    batches = list(data.test.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 4, 1]
    for images, labels in batches:
        assert images.shape == (len(labels), 3, 24, 24)
        assert images.dtype == torch.uint8
        # The class's colour survives decoding and cropping.
        assert torch.equal(images.float().mean(dim=(2, 3)).argmax(dim=1), labels)


def test_training_batches_are_random_and_repeatable(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    data = load_image_folder(tmp_path, size=16)

    def epoch(seed: int, first: int = 0, step: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        return list(
            data.train.batches(4, generator=generator, share=lambda places: places[first::step])
        )

    first, again, other = epoch(1), epoch(1), epoch(2)
    assert sorted(torch.cat([labels for _, labels in first]).tolist()) == 3 * [0] + 3 * [1] + 3 * [
        2
    ]
    for (images, labels), (same_images, same_labels) in zip(first, again, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    assert not torch.equal(first[0][0], other[0][0])
    shares = zip(first, epoch(1, 0, 2), epoch(1, 1, 2), strict=True)
    for (images, _), (even, _), (odd, labels) in shares:
        assert torch.equal(images[0::2], even)
        assert torch.equal(images[1::2], odd) or len(labels) == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_change_nothing(tmp_path: Path) -> None:
    write_image_folder(tmp_path, per_class=1)
    data = load_image_folder(tmp_path, size=16)
    alone, together = (
        list(data.train.batches(2, generator=torch.Generator().manual_seed(0), workers=workers))
        for workers in (0, 1)
    )
    for (images, labels), (same_images, same_labels) in zip(alone, together, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


def test_held_out_images(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    data = load_image_folder(tmp_path, size=16, validation_size=4, seed=3)
    files = {*data.train.files, *data.validation.files}
    assert (len(data.train), len(data.validation), len(files)) == (5, 4, 9)
    for split in (data.train, data.validation):
        for path, label in zip(split.files, split.labels, strict=True):
            assert path.parent.name == CLASSES[label]
    with pytest.raises(ValueError, match="must lie in 0 to 8, got 9"):
        load_image_folder(tmp_path, size=16, validation_size=9)


def test_normalised_images(tmp_path: Path) -> None:
    write_image_folder(tmp_path, per_class=1)
    data = load_image_folder(tmp_path, size=16)
    white = data.normalise(torch.full((1, 3, 1, 1), 255.0))
    expected = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(white[0, :, 0, 0], expected)


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (5, 4), 99).save(tmp_path / "grey.png")
    assert torch.equal(read_image(tmp_path / "grey.png"), torch.full((3, 4, 5), 99).byte())


@pytest.mark.parametrize("keep", [0, 100])
def test_damaged_images(tmp_path: Path, keep: int) -> None:
    write_image_folder(tmp_path, per_class=1)
    (path,) = (tmp_path / "val" / CLASSES[1]).iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    data = load_image_folder(tmp_path, size=16)
    with pytest.raises(
        DatasetError, match=rf"{path.name} must be an image, but it is damaged or none"
    ):
        list(data.test.batches(4))


def test_folders_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"but there is no .*train"):
        load_image_folder(tmp_path, size=16)
    (tmp_path / "train").mkdir()
    with pytest.raises(DatasetError, match="one folder per class, got none"):
        load_image_folder(tmp_path, size=16)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(DatasetError, match=r"must hold images \(\.jpeg, \.jpg, \.png\), got none"):
        load_image_folder(tmp_path, size=16)
    write_image_folder(tmp_path, per_class=1)
    (tmp_path / "val" / "unheard").mkdir()
    with pytest.raises(DatasetError, match=r"the training images, got also \['unheard'\]"):
        load_image_folder(tmp_path, size=16)
