"""What refining SHINE saves on a trained MDEQ."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import deq_kernels as dk
from deq_kernels.gradients import AdjointGradient
from deq_kernels.gradients.scaling import scale_of
from deq_kernels.models.mdeq import MDEQ
from deq_zoo.loop import Trainer
from deq_zoo.registry import run_config
from deq_zoo.tasks.mdeq import MDEQTask

TOLERANCE = 1e-3
IMAGES = 48


@dataclass(frozen=True, kw_only=True)
class Observed(AdjointGradient):
    """Another gradient, with its cotangent, its w, and the residual of that w measured anew."""

    gradient: AdjointGradient
    needs_inverse = True
    cotangents: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)

    def adjoint(self, cotangent: Tensor, vjp, inverse: dk.InverseJacobian | None) -> Tensor:
        w = self.gradient.adjoint(cotangent, vjp, inverse)
        left = vjp(w).double() + cotangent.double() - w.double()
        self.cotangents.append(cotangent)
        self.residuals.append(left.norm(dim=1) / cotangent.double().norm(dim=1))
        return w


def observe(gradient: AdjointGradient, model: MDEQ, images: Tensor, labels: Tensor) -> Observed:
    observed = Observed(gradient=gradient)
    model.deq.gradient = observed
    torch.manual_seed(1)  # the dropout masks
    F.cross_entropy(model(images), labels).backward()
    return observed


def test_adaptive_takes_two_thirds_of_the_products() -> None:
    """Of those that Broyden takes from zero to the same residual in every sample.

    The more the forward solve has learned of J the more is saved, so it is a precise one here.
    """
    pytest.importorskip("sklearn")
    settings = {"training.epochs": 4, "training.pretraining_steps": 40}
    config = run_config("mdeq", preset="digits", settings=settings)
    torch.manual_seed(config.training.seed)
    task = MDEQTask.build(config)
    trainer = Trainer(task, config)
    while trainer.epoch < config.training.epochs:
        trainer.run_epoch()
    assert trainer.history[-1].validation.value > 0.9
    model = task.model.train()
    data = task.data.splits
    model.deq.solver = dk.Broyden(max_steps=150, rtol=1e-6, stall_steps=None)
    images, labels = data.validation.images[:IMAGES], data.validation.labels[:IMAGES]

    seen: list[dk.Solution] = []
    adaptive = dk.Adaptive(tolerance=TOLERANCE, max_steps=100, on_solve=seen.append)
    observed = observe(adaptive, model, images, labels)
    (solution,) = seen
    assert solution.converged.all()
    # The residual is measured in float32, in which w is up to some ten times as long as ℓ.
    assert (observed.residuals[0] <= TOLERANCE + 1e-5).all()
    torch.testing.assert_close(solution.residual, observed.residuals[0], rtol=0.0, atol=1e-5)

    # Broyden's first step from zero is ℓ, without a product; Implicit starts there.
    broyden = dk.Broyden(max_steps=120, rtol=0.0, stall_steps=None)
    observed = observe(dk.Implicit(solver=broyden, on_solve=seen.append), model, images, labels)
    (cotangent,) = observed.cotangents
    size = (cotangent / scale_of(cotangent)).double().norm(dim=1, keepdim=True)
    above = seen[1].trace.cummin(dim=1).values > TOLERANCE * size
    needed = above.sum(dim=1) + 1
    assert needed.sum() >= 1.5 * solution.steps.sum()
    assert needed.max() >= 1.5 * solution.steps.max()  # what the whole batch is multiplied
