"""The presets of MDEQ and how they are trained."""

from __future__ import annotations

from dataclasses import dataclass

from deq_kernels.models.mdeq.config import MDEQConfig
from deq_kernels.training.config import TrainingConfig
from deq_kernels.training.equilibrium import EquilibriumConfig
from deq_kernels.training.presets import Preset


@dataclass(frozen=True, kw_only=True)
class MDEQTraining(TrainingConfig):
    """How an MDEQ is trained: `TrainingConfig` with what is particular to images."""


PRESETS: dict[str, Preset] = {
    "digits": Preset(
        model=MDEQConfig.preset("digits"),
        training=MDEQTraining(
            epochs=15, learning_rate=3e-3, pretraining_steps=60, pretraining_depth=5
        ),
        equilibrium=EquilibriumConfig(gradient="shine", forward_steps=30, backward_steps=30),
        data="digits",
    ),
}
