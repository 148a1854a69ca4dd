"""The presets of MDEQ and how they are trained.

Sources: the public code of MDEQ and of its Jacobian regularisation (Bai, Koltun and Kolter 2020 and
2021), whose augmentation, schedules and step counts these are; phantom gradients (Geng et al. 2021)
for those that end in _upg.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from deq_kernels.models.mdeq import MDEQConfig
from deq_kernels.options import check_choice, check_flag
from deq_zoo.config import TrainingConfig, check_whole
from deq_zoo.equilibrium import EquilibriumConfig
from deq_zoo.presets import Preset

Augmentation = Literal["none", "crop_flip", "resized_crop_flip"]


@dataclass(frozen=True, kw_only=True)
class MDEQTraining(TrainingConfig):
    """How an MDEQ is trained: `TrainingConfig`, and what is particular to images.

    Args:
        augmentation: "crop_flip" shifts and mirrors images; "resized_crop_flip" scales random parts
            of them and mirrors these, for images from folders.
        crop_padding: pixels by which crop_flip shifts at most.
        validation_size: training images held out for validation; 0: the test images are validated
            on, as in the papers.
        workers: processes that decode images from folders.
        channels_last: keep the images, the stem, the cell's weights and the head with channels
            last, as tensor cores like them. The state stays as it is.
    """

    augmentation: Augmentation = "none"
    crop_padding: int = 4
    validation_size: int = 0
    workers: int = 0
    channels_last: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("augmentation", self.augmentation, get_args(Augmentation))
        for name in ("crop_padding", "validation_size", "workers"):
            check_whole(name, getattr(self, name))
        check_flag("channels_last", self.channels_last)


_DIGITS = Preset(
    model=MDEQConfig.preset("digits"),
    training=MDEQTraining(epochs=15, learning_rate=3e-3, pretraining_steps=60, pretraining_depth=5),
    equilibrium=EquilibriumConfig(gradient="shine", forward_steps=30, backward_steps=30),
    data="digits",
)

_TINY = Preset(
    model=MDEQConfig.preset("cifar10_tiny"),
    training=MDEQTraining(
        epochs=50,
        batch_size=128,
        learning_rate=1e-3,
        weight_decay=2.5e-6,
        pretraining_steps=3_000,
        pretraining_depth=10,
    ),
    equilibrium=EquilibriumConfig(forward_steps=22, backward_steps=24),
    data="cifar10",
)

_LARGE = Preset(
    model=MDEQConfig.preset("cifar10_large"),
    training=MDEQTraining(
        epochs=220,
        batch_size=128,
        learning_rate=1e-3,
        pretraining_steps=20_000,
        pretraining_depth=10,
        augmentation="crop_flip",
    ),
    equilibrium=EquilibriumConfig(forward_steps=18, backward_steps=20),
    data="cifar10",
)

_SMALL = Preset(
    model=MDEQConfig.preset("imagenet_small"),
    training=MDEQTraining(
        epochs=100,
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.05,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-5,
        pretraining_steps=500_000,
        pretraining_depth=5,
        augmentation="resized_crop_flip",
        workers=8,
    ),
    equilibrium=EquilibriumConfig(forward_steps=26, backward_steps=27, rtol=0.0, atol=1e-3),
    data="imagenet",
)


def _regularised(
    preset: Preset, *, steps: tuple[int, int], dropout: float, training: TrainingConfig
) -> Preset:
    """With Jacobian regularisation, and (forward, backward) steps."""
    forward, backward = steps
    return replace(
        preset,
        model=replace(preset.model, dropout=dropout),
        training=replace(training, jacobian_probes=2, jittered="regularised", step_jitter=(-2, 1)),
        equilibrium=replace(preset.equilibrium, forward_steps=forward, backward_steps=backward),
    )


def _unrolled(preset: Preset, *, damping: float, training: TrainingConfig) -> Preset:
    """With the phantom gradient UPG A_{5, damping}, without dropout and pretraining."""
    return replace(
        preset,
        model=replace(preset.model, dropout=0.0),
        training=replace(training, pretraining_steps=0),
        equilibrium=replace(
            preset.equilibrium, gradient="unrolled", gradient_steps=5, damping=damping
        ),
    )


_SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
}

PRESETS: dict[str, Preset] = {
    "digits": _DIGITS,
    "cifar10_tiny": _TINY,
    "cifar10_tiny_upg": _unrolled(_TINY, damping=0.5, training=replace(_TINY.training, **_SGD)),
    "cifar10_large": _LARGE,
    "cifar10_large_jr": _regularised(
        _LARGE,
        steps=(8, 7),
        dropout=0.22,
        training=replace(
            _LARGE.training,
            batch_size=96,
            pretraining_steps=16_000,
            pretraining_depth=8,
            jacobian_weight=0.4,
            jacobian_frequency=0.02,
            jacobian_epochs=90,
        ),
    ),
    "cifar10_large_upg": _unrolled(_LARGE, damping=0.5, training=replace(_LARGE.training, **_SGD)),
    "imagenet_small": _SMALL,
    "imagenet_small_jr": _regularised(
        _SMALL,
        steps=(14, 14),
        dropout=0.02,
        training=replace(
            _SMALL.training,
            learning_rate=0.04,
            weight_decay=2e-5,
            jacobian_weight=2.5,
            jacobian_frequency=0.08,
            jacobian_growth=0.1,
            jacobian_growth_steps=50_000,
            pretraining_jacobian_weight=0.03,
        ),
    ),
    "imagenet_small_upg": _unrolled(_SMALL, damping=0.6, training=_SMALL.training),
}
