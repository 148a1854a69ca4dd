"""Random crops and mirror images of a batch, as tensors, from numbers drawn beforehand.

What is drawn does not depend on who computes it: all processes that share a batch draw the numbers
of the whole batch, and each uses those of its own images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deq_kernels.options import check_option

TRIES = 10
SMALLEST_AREA = 0.08
LARGEST_ASPECT = 4.0 / 3.0


@dataclass(frozen=True, kw_only=True)
class CropFlip:
    """Each image shifted by up to `padding` pixels, black coming in, and mirrored half the time.

    Args:
        padding: in pixels, at least 0.

    Raises:
        ValueError: padding is out of its range.
    """

    padding: int = 4

    def __post_init__(self) -> None:
        whole = isinstance(self.padding, int) and not isinstance(self.padding, bool)
        check_option(
            "padding", self.padding, whole and self.padding >= 0, "a whole number, at least 0"
        )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Numbers for `count` images, [count, 3] int64: top, left, whether mirrored."""
        shifts = torch.randint(2 * self.padding + 1, (count, 2), generator=generator)
        return torch.cat([shifts, torch.randint(2, (count, 1), generator=generator)], dim=1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """New images.

        Args:
            images: [B, C, H, W] of any dtype.
            draws: [B, 3], see `draw`.
        """
        count, _, height, width = images.shape
        padded = F.pad(images, [self.padding] * 4)
        top, left, mirrored = draws.to(images.device).unbind(1)
        rows = top[:, None] + torch.arange(height, device=images.device)
        column = torch.arange(width, device=images.device).expand(count, width)
        columns = left[:, None] + torch.where(mirrored[:, None] > 0, width - 1 - column, column)
        sample = torch.arange(count, device=images.device)[:, None, None]
        # [B, H, W, C], as the indexed dimensions come first.
        picked = padded[sample, :, rows[:, :, None], columns[:, None, :]]
        return picked.permute(0, 3, 1, 2).contiguous()


def draw_resized_crops(count: int, generator: torch.Generator) -> Tensor:
    """Numbers for `count` calls of `resized_crop`, [count, 4 * 10 + 1] in [0, 1)."""
    return torch.rand(count, 4 * TRIES + 1, generator=generator)


def resized_crop(image: Tensor, size: int, numbers: Tensor) -> Tensor:
    """A random part of an image, scaled to a square, and mirrored half the time.

    The part has 8 % to 100 % of the area and an aspect ratio of 3/4 to 4/3, whose logarithm is
    uniform (Szegedy et al. 2015, "Going deeper with convolutions"); where ten tries do not fit, it
    is the largest part in the middle with an allowed ratio.

    Args:
        image: [C, H, W], uint8.
        size: of the side.
        numbers: [41], a row of `draw_resized_crops`.

    Returns:
        [C, size, size], uint8.
    """
    height, width = image.shape[1:]
    top, left, rows, columns = _part(height, width, numbers)
    part = image[:, top : top + rows, left : left + columns]
    scaled = resize(part, (size, size))
    return scaled.flip(2) if float(numbers[-1]) < 0.5 else scaled


def central_crop(image: Tensor, size: int, *, resized: int) -> Tensor:
    """The middle of an image whose shorter side is first scaled.

    Args:
        image: [C, H, W], uint8.
        size: of the side of the result.
        resized: of the shorter side before the crop, at least `size`.

    Returns:
        [C, size, size], uint8.
    """
    height, width = image.shape[1:]
    scale = resized / min(height, width)
    scaled = resize(image, (max(size, round(height * scale)), max(size, round(width * scale))))
    top, left = ((side - size) // 2 for side in scaled.shape[1:])
    return scaled[:, top : top + size, left : left + size]


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with antialiasing, [C, H, W] to [C, *size], uint8."""
    scaled = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return scaled.round().clamp(0, 255).to(torch.uint8)


def _part(height: int, width: int, numbers: Tensor) -> tuple[int, int, int, int]:
    """Top, left, rows and columns."""
    for area, aspect, down, right in numbers[:-1].view(TRIES, 4).tolist():
        target = height * width * (SMALLEST_AREA + (1 - SMALLEST_AREA) * area)
        ratio = LARGEST_ASPECT ** (2 * aspect - 1)
        rows, columns = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
            return top, left, rows, columns
    rows = min(height, round(width * LARGEST_ASPECT))
    columns = min(width, round(height * LARGEST_ASPECT))
    return (height - rows) // 2, (width - columns) // 2, rows, columns
