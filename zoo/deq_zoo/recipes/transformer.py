"""The presets of the DEQ-Transformer and how they are trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deq_kernels.models.transformer import TransformerConfig
from deq_kernels.options import check_count
from deq_zoo.config import TrainingConfig
from deq_zoo.equilibrium import EquilibriumConfig
from deq_zoo.presets import Preset


@dataclass(frozen=True, kw_only=True)
class TransformerTraining(TrainingConfig):
    """How a DEQ-Transformer is trained: `TrainingConfig` with what is particular to text.

    Args:
        batch_size: streams that the training text is cut into, over all processes.
        evaluation_batch_size: streams of the validation and the test text.
        epochs: see `TrainingConfig`, as for every other option.
    """

    evaluation_batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("evaluation_batch_size", self.evaluation_batch_size)


# 24 epochs of 12,289 steps each are the published 300,000 steps, to a few.
_WIKITEXT103 = TransformerTraining(
    epochs=24,
    batch_size=56,
    learning_rate=2.5e-4,
    warmup_steps=16_000,
    clip_norm=0.25,
    pretraining_steps=32_000,
    pretraining_depth=2,
)
_JACOBIAN = replace(
    _WIKITEXT103,
    jacobian_weight=1.9,
    jacobian_frequency=0.35,
    jacobian_growth=0.1,
    jacobian_growth_steps=35_000,
    step_jitter=(-2, 0),
    jittered="always",
)
_PRELN_JACOBIAN = replace(
    _JACOBIAN, jacobian_weight=2.0, jacobian_frequency=0.4, jacobian_growth_steps=30_000
)


def _published(steps: int, backward_steps: int) -> EquilibriumConfig:
    return EquilibriumConfig(solver="anderson", forward_steps=steps, backward_steps=backward_steps)


def _phantom(steps: int) -> EquilibriumConfig:
    """A_{5, 0.8} of the phantom-gradient paper, table 3."""
    return EquilibriumConfig(
        solver="anderson",
        forward_steps=steps,
        gradient="unrolled",
        gradient_steps=5,
        damping=0.8,
    )


def _wikitext103(
    shape: str, training: TransformerTraining, equilibrium: EquilibriumConfig
) -> Preset:
    return Preset(
        model=TransformerConfig.preset(shape),
        training=training,
        equilibrium=equilibrium,
        data="wikitext103",
    )


PRESETS: dict[str, Preset] = {
    "pydoc": Preset(
        model=TransformerConfig.preset("pydoc"),
        training=TransformerTraining(
            epochs=16,
            batch_size=16,
            evaluation_batch_size=8,
            learning_rate=2e-3,
            warmup_steps=100,
            clip_norm=0.25,
            pretraining_steps=500,
            pretraining_depth=2,
            jacobian_weight=0.5,
            jacobian_frequency=0.4,
        ),
        equilibrium=EquilibriumConfig(
            solver="anderson", forward_steps=24, backward_steps=24, gradient="jfb"
        ),
        data="pydoc",
    ),
    "wikitext103_base": _wikitext103("wikitext103_base", _WIKITEXT103, _published(30, 35)),
    "wikitext103_jr": _wikitext103("wikitext103_jr", _JACOBIAN, _published(12, 13)),
    "wikitext103_preln_jr": _wikitext103(
        "wikitext103_preln_jr", _PRELN_JACOBIAN, _published(14, 14)
    ),
    "wikitext103_upg": _wikitext103("wikitext103_base", _WIKITEXT103, _phantom(30)),
    "wikitext103_preln_jr_upg": _wikitext103("wikitext103_preln_jr", _PRELN_JACOBIAN, _phantom(14)),
}
