"""The MDEQ classifier."""

from torch import Tensor, nn

from deq_kernels.gradients import Gradient, Implicit
from deq_kernels.layer import DEQ
from deq_kernels.models.mdeq.cell import MDEQCell, initialise_plain_convolutions
from deq_kernels.models.mdeq.config import MDEQConfig
from deq_kernels.models.mdeq.head import Head
from deq_kernels.models.mdeq.stem import Stem
from deq_kernels.solvers import Broyden, Solution, Solver

STEPS = 30
"""Enough for all published shapes, which took at most 27."""
PUBLISHED_RTOL = 1e-3


class MDEQ(nn.Module):
    """Multiscale deep equilibrium classifier (Bai, Koltun and Kolter, 2020).

    The stem turns the image into an injection u, the equilibrium z = f(z, u) of `MDEQCell` is
    solved from zero, and the head classifies it.

    Args:
        config: the architecture, e.g. `MDEQConfig.preset("cifar10_tiny")`.
        solver: forward solver; default Broyden with at most 30 evaluations and the published
            relative tolerance 1e-3.
        gradient: how the gradient passes the equilibrium; default `Implicit` with the same.
        eval_solver: forward solver in eval mode; default `solver`.
        warm_start: passed to `DEQ`.
    """

    def __init__(
        self,
        config: MDEQConfig,
        *,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        eval_solver: Solver | None = None,
        warm_start: bool = False,
    ) -> None:
        super().__init__()
        if solver is None:
            solver = Broyden(max_steps=STEPS, rtol=PUBLISHED_RTOL)
        if gradient is None:
            gradient = Implicit(solver=Broyden(max_steps=STEPS, rtol=PUBLISHED_RTOL))
        self.config = config
        self.stem = Stem(config)
        self.deq = DEQ(
            MDEQCell(config),
            solver=solver,
            gradient=gradient,
            eval_solver=eval_solver,
            warm_start=warm_start,
        )
        self.head = Head(config)
        initialise_plain_convolutions(self.stem)
        initialise_plain_convolutions(self.head)

    @property
    def cell(self) -> MDEQCell:
        """The map f whose fixed point is the state."""
        cell = self.deq.cell
        assert isinstance(cell, MDEQCell)
        return cell

    @property
    def last_solution(self) -> Solution | None:
        """How the last equilibrium was found (see `DEQ.last_solution`)."""
        return self.deq.last_solution

    def forward(self, x: Tensor, *, pretrain_steps: int | None = None) -> Tensor:
        """Class scores of a batch of images.

        Args:
            x: images [B, image_channels, height, width].
            pretrain_steps: if given, apply the cell this many times from zero and differentiate
                through all of them, instead of solving for the equilibrium.

        Returns:
            Scores [B, classes], before the softmax.

        Raises:
            ValueError: the image shape is not the config's, or `pretrain_steps` is below 1.
        """
        expected = (self.config.image_channels, *self.config.image_size)
        if x.dim() != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"expected images [B, {', '.join(map(str, expected))}], got {tuple(x.shape)}"
            )
        if pretrain_steps is not None and pretrain_steps < 1:
            raise ValueError(f"pretrain_steps must be at least 1, got {pretrain_steps}")
        u = self.stem(x)
        z = tuple(u.new_zeros(x.shape[0], *shape) for shape in self.config.state_shapes)
        with self.cell.one_solve(u):
            if pretrain_steps is None:
                z = self.deq(z, u)
            else:
                for _ in range(pretrain_steps):
                    z = self.cell(z, u)
        scores: Tensor = self.head(z)
        return scores
