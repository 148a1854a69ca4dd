"""The 8x8 handwritten digits that come with scikit-learn: 1797 images, no download."""

from dataclasses import dataclass

import torch

from deq_kernels.data.split import Split
from deq_kernels.optional import optional_import

IMAGE_CHANNELS = 1
IMAGE_SIZE = (8, 8)
CLASSES = 10
LARGEST_GREY = 16.0


@dataclass(frozen=True)
class Digits:
    """Disjoint training and validation images."""

    train: Split
    validation: Split


def load_digits(*, validation_fraction: float = 0.2, seed: int = 0) -> Digits:
    """Load the digits with grey values in [0, 1], split by class in equal proportions.

    Args:
        validation_fraction: share of the images held out, between 0 and 1.
        seed: draws the split; the same seed always gives the same one.

    Returns:
        images [N, 1, 8, 8] float32 and labels [N] int64 for both parts.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: validation_fraction is not strictly between 0 and 1.
    """
    if not 0.0 < validation_fraction < 1.0:
        raise ValueError(
            f"validation_fraction must lie strictly between 0 and 1, got {validation_fraction}"
        )
    with optional_import(extra="train"):
        from sklearn import datasets
        from sklearn.model_selection import train_test_split

    bundle = datasets.load_digits()
    indices = range(len(bundle.target))
    parts = train_test_split(
        indices, test_size=validation_fraction, stratify=bundle.target, random_state=seed
    )
    images = torch.from_numpy(bundle.images).float().unsqueeze(1) / LARGEST_GREY
    labels = torch.from_numpy(bundle.target).long()
    train, validation = (Split(images[part], labels[part]) for part in map(sorted, parts))
    return Digits(train=train, validation=validation)
