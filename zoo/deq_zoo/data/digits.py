"""The 8x8 handwritten digits that come with scikit-learn: 1797 images, no download."""

import torch

from deq_zoo.data.split import Split, Splits

IMAGE_CHANNELS = 1
IMAGE_SIZE = (8, 8)
CLASSES = 10
LARGEST_GREY = 16.0


def load_digits(
    *, validation_fraction: float = 0.1, test_fraction: float = 0.2, seed: int = 0
) -> Splits:
    """Load the digits with grey values in [0, 1], split by class in equal proportions.

    Args:
        validation_fraction: share of the images to choose by, between 0 and 1.
        test_fraction: share of the images to judge by, between 0 and 1.
        seed: draws the split; the same seed always gives the same one.

    Returns:
        images [N, 1, 8, 8] float32 and labels [N] int64 for each part.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: a fraction, or both together, are not strictly between 0 and 1.
    """
    held_out = validation_fraction + test_fraction
    if not (0.0 < validation_fraction < 1.0 and 0.0 < test_fraction < 1.0 and held_out < 1.0):
        raise ValueError(
            "validation_fraction, test_fraction and their sum must lie strictly between 0 and 1, "
            f"got {validation_fraction} and {test_fraction}"
        )
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    bundle = datasets.load_digits()
    target = bundle.target
    rest, test = train_test_split(
        range(len(target)), test_size=test_fraction, stratify=target, random_state=seed
    )
    train, validation = train_test_split(
        rest,
        test_size=validation_fraction / (1.0 - test_fraction),
        stratify=target[rest],
        random_state=seed,
    )
    images = torch.from_numpy(bundle.images).float().unsqueeze(1) / LARGEST_GREY
    labels = torch.from_numpy(target).long()

    def split(part: list[int]) -> Split:
        return Split(images[sorted(part)], labels[sorted(part)])

    return Splits(train=split(train), validation=split(validation), test=split(test))
