"""Multiscale fusion: every branch receives every other one at its own resolution."""

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from deq_kernels.models.mdeq.config import POST_GROUPS, MDEQConfig


class Fusion(nn.Module):
    """x_i = post(sum_j F_ij(y_j)) for one branch i = `target`.

    F_ii is the identity. Coarser to finer (j > i): 1x1 convolution, GroupNorm, nearest upsampling.
    Finer to coarser (j < i): i - j times [3x3 stride-2 convolution, GroupNorm] with ReLU in
    between, the channels changing in the last. post is ReLU, weight-normalised 1x1 convolution,
    GroupNorm with 4 groups.
    """

    def __init__(self, config: MDEQConfig, *, target: int) -> None:
        super().__init__()
        channels = config.channels[target]
        self.paths = nn.ModuleList(
            _path(config, source=source, target=target) for source in range(config.branches)
        )
        self.post = nn.Sequential(
            nn.ReLU(),
            weight_norm(nn.Conv2d(channels, channels, 1, bias=False)),
            nn.GroupNorm(POST_GROUPS, channels, affine=config.post_affine),
        )

    def forward(self, y: tuple[Tensor, ...]) -> Tensor:
        """y_j [B, C_j, H_j, W_j] for every branch j to x_i [B, C_i, H_i, W_i]."""
        first, *others = (path(branch) for path, branch in zip(self.paths, y, strict=True))
        total = first
        for other in others:
            total = total + other
        x: Tensor = self.post(total)
        return x


def _path(config: MDEQConfig, *, source: int, target: int) -> nn.Module:
    if source == target:
        return nn.Identity()
    inputs, outputs = config.channels[source], config.channels[target]
    if source > target:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.GroupNorm(config.groups, outputs),
            nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"),
        )
    layers: list[nn.Module] = []
    for _ in range(target - source - 1):
        layers += [*_halve(config, inputs, inputs), nn.ReLU()]
    return nn.Sequential(*layers, *_halve(config, inputs, outputs))


def _halve(config: MDEQConfig, inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
        nn.GroupNorm(config.groups, outputs),
    ]
