"""The shape of an MDEQ, and the published shapes as presets."""

from dataclasses import dataclass
from math import prod

POST_GROUPS = 4


@dataclass(frozen=True, kw_only=True)
class MDEQConfig:
    """Architecture of an MDEQ classifier.

    Branch i (counted from 0) holds `channels[i]` feature maps of the input resolution divided by
    2^(stem_downsamplings + i). The state is the concatenation of all branches.

    Args:
        image_channels: channels of the input image.
        image_size: (height, width) of the input image in pixels.
        classes: number of classes.
        channels: feature maps per branch, finest first; multiples of `groups`.
        head_channels: inner width of each branch's head bottleneck; its output is 4 times wider.
        final_channels: feature maps that are average-pooled before the linear classifier.
        stem_downsamplings: how many of the two stem convolutions have stride 2 (0, 1 or 2).
        expansion: width of the inner layer of a branch block, as a multiple of its channels.
        groups: groups of every GroupNorm but the last of the cell, which has 4.
        post_affine: whether that last GroupNorm has a scale and a shift. The counted parameters
            include them.
        dropout: probability of the variational dropout in the branch blocks.

    Raises:
        ValueError: inconsistent lengths, numbers out of their range, or sizes that the groups or
            the strides do not divide.
    """

    image_channels: int
    image_size: tuple[int, int]
    classes: int
    channels: tuple[int, ...]
    head_channels: tuple[int, ...]
    final_channels: int
    stem_downsamplings: int = 0
    expansion: int = 5
    groups: int = 8
    post_affine: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.channels or len(self.channels) != len(self.head_channels):
            raise ValueError(
                "channels and head_channels need one entry per branch, got "
                f"{self.channels} and {self.head_channels}"
            )
        for name in _POSITIVE:
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if not isinstance(number, int) or number < 1:
                    raise ValueError(f"{name} needs whole numbers of at least 1, got {value}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        for count in self.channels:
            if count % self.groups or count % POST_GROUPS:
                raise ValueError(
                    f"every entry of channels must be a multiple of groups = {self.groups} and of "
                    f"{POST_GROUPS}, got {self.channels}"
                )
        if self.stem_downsamplings not in (0, 1, 2):
            raise ValueError(f"stem_downsamplings must be 0, 1 or 2, got {self.stem_downsamplings}")
        stride = 2 ** (self.stem_downsamplings + self.branches - 1)
        if any(size <= 0 or size % stride for size in self.image_size):
            raise ValueError(
                f"both sides of image_size must be multiples of {stride}, the stride of the "
                f"coarsest branch, got {self.image_size}"
            )

    @property
    def branches(self) -> int:
        """Number of resolutions."""
        return len(self.channels)

    @property
    def state_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(channels, height, width) of each branch of one sample."""
        height, width = self.image_size
        strides = (2 ** (self.stem_downsamplings + i) for i in range(self.branches))
        return tuple(
            (count, height // stride, width // stride)
            for count, stride in zip(self.channels, strides, strict=True)
        )

    @property
    def state_dim(self) -> int:
        """Dimension d of the equilibrium problem of one sample."""
        return sum(prod(shape) for shape in self.state_shapes)

    @staticmethod
    def preset(name: str) -> "MDEQConfig":
        """One of the shapes in `PRESETS`.

        Raises:
            ValueError: no preset has this name.
        """
        if name not in PRESETS:
            raise ValueError(f"no MDEQ preset is called {name!r}; there are {', '.join(PRESETS)}")
        return PRESETS[name]


_POSITIVE = (
    "image_channels",
    "classes",
    "channels",
    "head_channels",
    "final_channels",
    "expansion",
    "groups",
)

PRESETS: dict[str, MDEQConfig] = {
    "digits": MDEQConfig(
        image_channels=1,
        image_size=(8, 8),
        classes=10,
        channels=(16, 16),
        head_channels=(8, 16),
        final_channels=64,
        expansion=2,
        dropout=0.1,
    ),
    "cifar10_tiny": MDEQConfig(
        image_channels=3,
        image_size=(32, 32),
        classes=10,
        channels=(24, 24),
        head_channels=(8, 16),
        final_channels=200,
        dropout=0.25,
    ),
    "cifar10_large": MDEQConfig(
        image_channels=3,
        image_size=(32, 32),
        classes=10,
        channels=(32, 64, 128, 256),
        head_channels=(14, 28, 56, 112),
        final_channels=1680,
        dropout=0.3,
    ),
    "imagenet_small": MDEQConfig(
        image_channels=3,
        image_size=(224, 224),
        classes=1000,
        channels=(32, 64, 128, 256),
        head_channels=(24, 48, 96, 192),
        final_channels=2048,
        stem_downsamplings=2,
    ),
}
