"""From the equilibrium of all branches to class scores."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from deq_kernels.models.mdeq.config import MDEQConfig

EXPANSION = 4


class Bottleneck(nn.Module):
    """Residual 1x1, 3x3, 1x1 convolutions with BatchNorm, [B, inputs, ...] to [B, 4 * width, ...].

    The inner BatchNorms have no scale or shift. The shortcut is a 1x1 convolution with an affine
    BatchNorm where the widths differ, and the identity otherwise.
    """

    def __init__(self, inputs: int, *, width: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width, affine=False),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, affine=False),
            nn.ReLU(),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs, affine=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Head(nn.Module):
    """A cascade from fine to coarse, then pooling: y <- widen_i(z_i) + ReLU(BN(conv3x3/2 y)).

    A 1x1 convolution to `final_channels`, BatchNorm, ReLU, average pooling over the image and a
    linear classifier follow.
    """

    def __init__(self, config: MDEQConfig) -> None:
        super().__init__()
        widths = [EXPANSION * width for width in config.head_channels]
        self.widen = nn.ModuleList(
            Bottleneck(inputs, width=width)
            for inputs, width in zip(config.channels, config.head_channels, strict=True)
        )
        self.halve = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(fine, coarse, 3, stride=2, padding=1),
                nn.BatchNorm2d(coarse),
                nn.ReLU(),
            )
            for fine, coarse in pairwise(widths)
        )
        self.final = nn.Sequential(
            nn.Conv2d(widths[-1], config.final_channels, 1),
            nn.BatchNorm2d(config.final_channels),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(config.final_channels, config.classes)

    def forward(self, z: tuple[Tensor, ...]) -> Tensor:
        """z_i [B, C_i, H_i, W_i] for every branch to scores [B, classes]."""
        y = self.widen[0](z[0])
        for branch, widen, halve in zip(z[1:], self.widen[1:], self.halve, strict=True):
            y = widen(branch) + halve(y)
        scores: Tensor = self.classifier(self.final(y).mean(dim=(2, 3)))
        return scores
