"""The input injection: computed once per forward pass, constant during the solve."""

from torch import Tensor, nn

from deq_kernels.models.mdeq.config import MDEQConfig


class Stem(nn.Module):
    """Image [B, image_channels, H, W] to the injection u [B, channels[0], H', W'].

    Two [3x3 convolution, BatchNorm, ReLU], each with stride 2 if the config asks for that many
    downsamplings, then a 1x1 [convolution, BatchNorm, ReLU] unless the model has at most two
    branches and no downsampling.
    """

    def __init__(self, config: MDEQConfig) -> None:
        super().__init__()
        width = config.channels[0]
        strides = [2 if i < config.stem_downsamplings else 1 for i in range(2)]
        layers = [
            *_conv_bn_relu(config.image_channels, width, kernel_size=3, stride=strides[0]),
            *_conv_bn_relu(width, width, kernel_size=3, stride=strides[1]),
        ]
        if config.stem_downsamplings > 0 or config.branches > 2:
            layers += _conv_bn_relu(width, width, kernel_size=1, stride=1)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        u: Tensor = self.layers(x)
        return u


def _conv_bn_relu(inputs: int, outputs: int, *, kernel_size: int, stride: int) -> list[nn.Module]:
    padding = kernel_size // 2
    return [
        nn.Conv2d(inputs, outputs, kernel_size, stride=stride, padding=padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]
