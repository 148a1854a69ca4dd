"""Images in one folder per class, as ImageNet is unpacked; decoded when they are needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deq_zoo.data.augmentation import central_crop, draw_resized_crops, resized_crop
from deq_zoo.data.errors import DatasetError
from deq_zoo.data.split import normalised

SUFFIXES = (".jpeg", ".jpg", ".png")

# Of ImageNet's training images, as widely used.
MEAN = tuple(255 * value for value in (0.485, 0.456, 0.406))
STD = tuple(255 * value for value in (0.229, 0.224, 0.225))

RESIZED = 256 / 224
"""The shorter side before the central crop, as a multiple of the crop's."""

LONGEST = 100
"""The longest side, in multiples of the shorter one, which images are scaled by."""

Job = tuple[int, Tensor | None]
"""Number of an image, and the random numbers of its crop; None for the middle."""

Sample = tuple[Tensor, int]
"""An image and its label."""


@dataclass(frozen=True, kw_only=True)
class FolderSplit(Dataset[tuple[Tensor, int]]):
    """Files with labels.

    Attributes:
        files, labels: one per image.
        size: of the side of the images that come out.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    size: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, job: Job) -> tuple[Tensor, int]:
        """An image [3, size, size] uint8 and its label."""
        index, numbers = job
        image = read_image(self.files[index])
        if numbers is None:
            crop = central_crop(image, self.size, resized=round(RESIZED * self.size))
        else:
            crop = resized_crop(image, self.size, numbers)
        return crop, self.labels[index]

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        share: Callable[[Tensor], Tensor] | None = None,
        workers: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over all images; the last batch may be smaller.

        Args:
            batch_size: images per batch, at least 1.
            generator: draws the order, and random crops with mirror images; without it the middles
                of the images come in the stored order.
            share: picks from the numbers of a batch's images those to yield; None: all of them.
            workers: processes that decode; their number changes nothing but the time.

        Yields:
            (images [b, 3, size, size] uint8, labels [b]).

        Raises:
            DatasetError: an image cannot be decoded.
            ValueError: batch_size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        jobs = _Jobs(len(self), batch_size, generator, share)
        loader = DataLoader(
            _Decoder(self),
            batch_sampler=jobs,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=False,
        )
        for batch in loader:
            if isinstance(batch, DatasetError):
                raise batch
            yield batch


@dataclass(frozen=True)
class _Decoder(Dataset["Sample | DatasetError"]):
    """A split whose damaged images come out as errors.

    Raised in a worker, an error would arrive with the worker's traceback for its message.
    """

    split: FolderSplit

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, job: Job) -> Sample | DatasetError:
        try:
            return self.split[job]
        except DatasetError as error:
            return error


class _Jobs:
    """The batches of one pass, each a list of jobs."""

    def __init__(
        self,
        count: int,
        batch_size: int,
        generator: torch.Generator | None,
        share: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.batches: list[list[Job]] = []
        order = torch.arange(count)
        seed = 0
        if generator is not None:
            order = torch.randperm(count, generator=generator)
            seed = int(torch.randint(2**62, (), generator=generator))
        self.order, self.batch_size, self.share = order, batch_size, share
        # Workers fetch ahead of time, so the crops have a generator of their own.
        self.crops = None if generator is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[list[Job]]:
        for batch in self.order.split(self.batch_size):
            places = torch.arange(len(batch))
            own = places if self.share is None else self.share(places)
            numbers: Sequence[Tensor | None] = [None] * len(batch)
            if self.crops is not None:
                numbers = list(draw_resized_crops(len(batch), self.crops))
            yield [(int(batch[place]), numbers[place]) for place in own.tolist()]


@dataclass(frozen=True, kw_only=True)
class FolderSplits:
    """Disjoint images to train with, to choose by and to judge by.

    Attributes:
        train, validation, test: `validation` is `test` where nothing was held out.
        classes: names of the folders, in the order of the labels.
    """

    train: FolderSplit
    validation: FolderSplit
    test: FolderSplit
    classes: tuple[str, ...]

    def normalise(self, images: Tensor) -> Tensor:
        """(images − mean) / std of ImageNet, for floating-point images [B, 3, H, W]."""
        return normalised(images, MEAN, STD)


def load_image_folder(
    root: str | Path, *, size: int, validation_size: int = 0, seed: int = 0
) -> FolderSplits:
    """List root/train/CLASS/*.JPEG and root/val/CLASS/*.JPEG; classes are numbered by name.

    Nothing is decoded yet. Files may end in .jpeg, .jpg or .png, in any case.

    Args:
        root: the folder with `train` and `val`.
        size: of the side of the images that come out.
        validation_size: training images to hold out; 0: the validation images are those of `val`,
            which the test images always are.
        seed: draws the images that are held out.

    Raises:
        ImportError: Pillow is not installed.
        DatasetError: a folder is missing, there are no images, or `val` has a class that `train`
            has not.
        OSError: a folder cannot be read.
        ValueError: there are not that many images to hold out.
    """
    import PIL.Image  # noqa: F401 - asked for before the folder is read

    folder = Path(root)
    names = _classes(folder / "train")
    train, test = (_list(folder / part, names, size) for part in ("train", "val"))
    validation = test
    if validation_size:
        if not 0 < validation_size < len(train):
            raise ValueError(
                f"validation_size must lie in 0 to {len(train) - 1}, got {validation_size}"
            )
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        held, kept = order[:validation_size].sort().values, order[validation_size:].sort().values
        train, validation = (
            FolderSplit(
                files=tuple(train.files[i] for i in part),
                labels=tuple(train.labels[i] for i in part),
                size=size,
            )
            for part in (kept.tolist(), held.tolist())
        )
    return FolderSplits(train=train, validation=validation, test=test, classes=names)


def read_image(path: Path) -> Tensor:
    """Decode a file to [3, H, W] uint8, in RGB.

    Raises:
        ImportError: Pillow is not installed.
        DatasetError: it cannot be read, is no JPEG or PNG, damaged, or of extreme size.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                if max(image.size) > LONGEST * min(image.size):
                    raise ValueError(f"its sides are {image.size[0]} and {image.size[1]} long")
                pixels = np.array(image.convert("RGB"))
    # Decoders raise what comes their way: of struct, of zlib, IndexError, ...
    except Exception as error:
        raise DatasetError(
            f"{path} must be an image, but it is damaged or none: {error}"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _collate(samples: list[Sample | DatasetError]) -> tuple[Tensor, Tensor] | DatasetError:
    """A batch, or the first error in it."""
    images, labels = [], []
    for sample in samples:
        if isinstance(sample, DatasetError):
            return sample
        images.append(sample[0])
        labels.append(sample[1])
    stacked = torch.stack(images) if images else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    return stacked, torch.tensor(labels, dtype=torch.int64)


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DatasetError(
            f"images are read from ROOT/train/CLASS and ROOT/val/CLASS, but there is no {folder}"
        )
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not names:
        raise DatasetError(f"{folder} must hold one folder per class, got none")
    return names


def _list(folder: Path, names: tuple[str, ...], size: int) -> FolderSplit:
    if unknown := set(_classes(folder)) - set(names):
        raise DatasetError(
            f"{folder} must hold the classes of the training images, got also {sorted(unknown)}"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if (folder / name).is_dir():
            found = [path for path in (folder / name).iterdir() if path.suffix.lower() in SUFFIXES]
            files += sorted(found)
            labels += [label] * len(found)
    if not files:
        raise DatasetError(f"{folder} must hold images ({', '.join(SUFFIXES)}), got none")
    return FolderSplit(files=tuple(files), labels=tuple(labels), size=size)
