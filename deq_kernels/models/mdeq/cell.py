"""The map f whose fixed point is the MDEQ state: one residual block per branch, then fusion."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from deq_kernels.models.mdeq.config import MDEQConfig
from deq_kernels.models.mdeq.fusion import Fusion
from deq_kernels.nn import VariationalDropout, one_solve


class BranchBlock(nn.Module):
    """y = GN3(ReLU(GN2(drop(conv2(ReLU(GN1(conv1 z)))) + u) + z)) at one resolution.

    conv1 is 3x3, C to expansion * C, conv2 is 3x3 back to C, both weight-normalised without bias.
    """

    def __init__(self, config: MDEQConfig, *, channels: int) -> None:
        super().__init__()
        inner = config.expansion * channels
        self.conv1 = weight_norm(nn.Conv2d(channels, inner, 3, padding=1, bias=False))
        self.norm1 = nn.GroupNorm(config.groups, inner)
        self.conv2 = weight_norm(nn.Conv2d(inner, channels, 3, padding=1, bias=False))
        self.dropout = VariationalDropout(config.dropout)
        self.norm2 = nn.GroupNorm(config.groups, channels)
        self.norm3 = nn.GroupNorm(config.groups, channels)

    def forward(self, z: Tensor, u: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """z and u [B, C, H, W] to y of the same shape.

        u = None stands for a zero injection; the dropout's present mask is used without a `mask`.
        """
        y = self.conv2(F.relu(self.norm1(self.conv1(z))))
        y = self.dropout(y) if mask is None else y * mask
        if u is not None:
            y = y + u
        out: Tensor = self.norm3(F.relu(self.norm2(y) + z))
        return out


class MDEQCell(nn.Module):
    """f(z, u): a `BranchBlock` per branch, u entering the finest one only, then `Fusion`.

    Weight norm and dropout must not change during a solve: run a solve inside `one_solve`.
    """

    def __init__(self, config: MDEQConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            BranchBlock(config, channels=channels) for channels in config.channels
        )
        self.fusion = nn.ModuleList(
            Fusion(config, target=target) for target in range(config.branches)
        )
        initialise_plain_convolutions(self)

    def forward(
        self, z: tuple[Tensor, ...], u: Tensor, masks: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, ...]:
        """One evaluation of f.

        Args:
            z: state, one tensor [B, C_i, H_i, W_i] per branch, of any strides.
            u: injection [B, C_0, H_0, W_0].
            masks: of the dropout, one per branch, as `masks` returned them; None: the present ones.

        Returns:
            f(z), with the shapes of z.
        """
        injections = (u, *[None] * (len(z) - 1))
        kept = [None] * len(z) if masks is None else masks
        y = tuple(
            block(branch, injection, mask)
            for block, branch, injection, mask in zip(self.blocks, z, injections, kept, strict=True)
        )
        return tuple(fuse(y) for fuse in self.fusion)

    def masks(self) -> tuple[Tensor, ...] | None:
        """The dropout's present masks [B, C_i, 1, 1]; None where nothing is dropped.

        A solver that evaluates f on some of the samples only needs them as inputs of f.
        """
        drops = [block.dropout for block in self.blocks if isinstance(block, BranchBlock)]
        if not self.training or any(drop.p == 0.0 for drop in drops):
            return None
        return tuple(drop.mask for drop in drops if drop.mask is not None)

    @contextmanager
    def one_solve(self, like: Tensor) -> Iterator[None]:
        """Draw the dropout masks, and compute the normalised weights once, for one solve.

        The masks stay after the exit, so a backward pass that evaluates f again sees the same map.
        The weights: `deq_kernels.nn.one_solve`.

        Args:
            like: a tensor whose batch size, dtype and device the masks take.

        Raises:
            RuntimeError: an enclosing parametrize.cached() holds weights without a graph.
        """
        for block in self.blocks:
            assert isinstance(block, BranchBlock)
            block.dropout.resample(
                like.shape[0], block.norm2.num_channels, dtype=like.dtype, device=like.device
            )
        with one_solve(self):
            yield


def initialise_plain_convolutions(module: nn.Module) -> None:
    """Draw weights and biases of convolutions without weight norm from N(0, 0.01^2)."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and not parametrize.is_parametrized(child):
            for parameter in child.parameters():
                nn.init.normal_(parameter, std=0.01)
