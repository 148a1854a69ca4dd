"""Crops: what is drawn is what comes out, pixel by pixel."""

from __future__ import annotations

import pytest
import torch

from deq_zoo.data import Split
from deq_zoo.data.augmentation import (
    CropFlip,
    central_crop,
    draw_resized_crops,
    resize,
    resized_crop,
)


def _images(count: int = 3) -> torch.Tensor:
    return torch.arange(count * 2 * 4 * 5, dtype=torch.uint8).reshape(count, 2, 4, 5)


def test_shifts_and_mirror_images_by_loops() -> None:
    images, augment = _images(), CropFlip(padding=1)
    draws = torch.tensor([[0, 2, 0], [1, 1, 1], [2, 0, 1]])
    out = augment(images, draws)
    assert out.dtype == torch.uint8
    for number, (top, left, mirrored) in enumerate(draws.tolist()):
        for row in range(4):
            for column in range(5):
                source = 4 - column if mirrored else column
                y, x = row + top - 1, source + left - 1
                inside = 0 <= y < 4 and 0 <= x < 5
                expected = images[number, :, y, x] if inside else torch.zeros(2, dtype=torch.uint8)
                assert torch.equal(out[number, :, row, column], expected)


def test_draws_cover_all_shifts_evenly() -> None:
    draws = CropFlip(padding=2).draw(4000, torch.Generator().manual_seed(0))
    for column, values in ((0, 5), (1, 5), (2, 2)):
        counts = draws[:, column].bincount(minlength=values)
        assert len(counts) == values
        assert (counts - 4000 / values).abs().max() < 0.2 * 4000 / values


@pytest.mark.parametrize("padding", [-1, 1.5, True])
def test_padding_out_of_range(padding: float) -> None:
    with pytest.raises(ValueError, match="padding must be a whole number, at least 0"):
        CropFlip(padding=padding)  # type: ignore[arg-type]


def test_processes_augment_as_one_would() -> None:
    split = Split(_images(), torch.arange(3))
    augment = CropFlip(padding=1)

    def batches(first: int, step: int) -> list[torch.Tensor]:
        return [
            images
            for images, _ in split.batches(
                2,
                generator=torch.Generator().manual_seed(7),
                share=lambda places: places[first::step],
                augment=augment,
            )
        ]

    whole, even, odd = batches(0, 1), batches(0, 2), batches(1, 2)
    for all_images, one, two in zip(whole, even, odd, strict=True):
        assert torch.equal(all_images[0::2], one)
        assert torch.equal(all_images[1::2], two)
    with pytest.raises(ValueError, match="pass a generator"):
        next(split.batches(2, augment=augment))


def test_resized_crops_lie_inside_and_vary() -> None:
    torch.manual_seed(0)
    # The red channel counts rows, the green one columns, both smooth.
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(90), indexing="ij")
    image = torch.stack([rows, columns, rows]).to(torch.uint8)
    mirrored = 0
    sizes = set()
    for numbers in draw_resized_crops(60, torch.Generator().manual_seed(1)):
        out = resized_crop(image, 16, numbers)
        assert out.shape == (3, 16, 16)
        assert out.dtype == torch.uint8
        red, green = out[0].int(), out[1].int()
        assert (red.diff(dim=0) >= 0).all()
        backwards = bool((green.diff(dim=1) <= 0).all())
        assert backwards or bool((green.diff(dim=1) >= 0).all())
        mirrored += backwards
        height, width = red[-1, 0] - red[0, 0], (green[0, -1] - green[0, 0]).abs()
        sizes.add((int(height), int(width)))
    assert 15 <= mirrored <= 45
    assert len(sizes) > 40


def test_a_crop_that_never_fits_is_the_middle() -> None:
    image = torch.zeros(3, 4, 100, dtype=torch.uint8)
    image[:, :, 48:52] = 200  # 4 rows allow 5 columns
    numbers = torch.full((41,), 0.999)  # the whole area, with the widest ratio: too tall
    assert resized_crop(image, 4, numbers).float().mean() > 120


def test_the_middle() -> None:
    image = torch.zeros(3, 40, 80, dtype=torch.uint8)
    image[:, 10:30, 30:50] = 255
    out = central_crop(image, 10, resized=20)
    assert out.shape == (3, 10, 10)
    assert (out[:, 1:-1, 1:-1] == 255).all()
    assert central_crop(image[:, :7, :9], 10, resized=11).shape == (3, 10, 10)


def test_resizing_keeps_a_constant() -> None:
    image = torch.full((3, 7, 9), 77, dtype=torch.uint8)
    assert torch.equal(resize(image, (4, 20)), torch.full((3, 4, 20), 77, dtype=torch.uint8))
