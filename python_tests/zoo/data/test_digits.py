"""The digits: values, split and batches."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from deq_zoo.data import Split, load_digits

needs_sklearn = pytest.mark.skipif(
    find_spec("sklearn") is None, reason="the digits come with scikit-learn"
)


def _split(count: int) -> Split:
    return Split(torch.arange(count).float().reshape(-1, 1, 1, 1), torch.arange(count))


@needs_sklearn
def test_shapes_and_values() -> None:
    digits = load_digits()
    assert [len(split) for split in (digits.train, digits.validation, digits.test)] == [
        *(1257, 180, 360)
    ]
    for split in (digits.train, digits.validation, digits.test):
        assert split.images.shape == (len(split), 1, 8, 8)
        assert split.images.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        assert split.images.min() == 0.0
        assert split.images.max() == 1.0


@needs_sklearn
def test_parts_are_disjoint_and_complete() -> None:
    from sklearn import datasets

    digits = load_digits(validation_fraction=0.3, test_fraction=0.1, seed=5)
    splits = (digits.train, digits.validation, digits.test)
    images = torch.cat([split.images for split in splits]).flatten(1)
    expected = torch.from_numpy(datasets.load_digits().data).float() / 16
    # Every image of the bundle is there exactly as often as in the bundle.
    assert sorted(images.tolist()) == sorted(expected.tolist())


@needs_sklearn
def test_every_class_is_held_out_in_proportion() -> None:
    digits = load_digits()
    counts = [
        split.labels.bincount(minlength=10)
        for split in (digits.train, digits.validation, digits.test)
    ]
    for count, share in zip(counts, (0.7, 0.1, 0.2), strict=True):
        assert ((count - share * sum(counts)).abs() <= 2).all()


@needs_sklearn
def test_the_seed_decides_the_split() -> None:
    first, again, other = (load_digits(seed=seed).train.images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.2), (1.0, 0.2), (0.2, -0.5), (0.5, 0.5)])
def test_fraction_out_of_range(validation: float, test: float) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        load_digits(validation_fraction=validation, test_fraction=test)


def test_batches_cover_every_sample_once() -> None:
    split = _split(10)
    batches = list(split.batches(4, generator=torch.Generator().manual_seed(0)))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    order = torch.cat([labels for _, labels in batches])
    assert order.tolist() != list(range(10))
    assert sorted(order.tolist()) == list(range(10))
    for images, labels in batches:
        assert images.flatten().tolist() == labels.tolist()


def test_order_without_a_generator() -> None:
    order = torch.cat([labels for _, labels in _split(10).batches(4)])
    assert order.tolist() == list(range(10))


def test_the_generator_continues_from_pass_to_pass() -> None:
    def passes(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return [
            torch.cat([labels for _, labels in _split(10).batches(4, generator=generator)]).tolist()
            for _ in range(2)
        ]

    first, second = passes(3)
    assert first != second
    assert passes(3) == [first, second]


def test_head_keeps_the_first_samples() -> None:
    head = _split(10).head(3)
    assert head.labels.tolist() == [0, 1, 2]
    assert len(head.images) == 3


def test_labels_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"got \(3, 1, 8, 8\) and \(4,\)"):
        Split(torch.zeros(3, 1, 8, 8), torch.zeros(4, dtype=torch.int64))


def test_batch_size_below_one() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(_split(3).batches(0))


def test_a_share_of_every_batch() -> None:
    def odd(indices: torch.Tensor) -> torch.Tensor:
        return indices[1::2]

    labels = [labels.tolist() for _, labels in _split(7).batches(4, share=odd)]
    assert labels == [[1, 3], [5]]
