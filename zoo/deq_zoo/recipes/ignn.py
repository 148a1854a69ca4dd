"""The presets of IGNN and how they are trained."""

from __future__ import annotations

from dataclasses import dataclass

from deq_kernels.models.ignn import IGNNConfig
from deq_kernels.options import check_choice, check_count, check_option
from deq_zoo.config import TrainingConfig
from deq_zoo.data.tu import FEATURES
from deq_zoo.equilibrium import EquilibriumConfig
from deq_zoo.presets import Preset

FOLDS = 10


@dataclass(frozen=True, kw_only=True)
class IGNNTraining(TrainingConfig):
    """How an IGNN is trained: `TrainingConfig` with what is particular to graphs.

    Args:
        repeats: how often an epoch passes over the training graphs, before it is validated; more
            than once where there is a single graph, and a pass is a single step.
        fold: of a dataset in the TU format, from 0 to 9: the tenth that is tested on.
        node_features: of such a dataset, see `load_tu`.

    Raises:
        ValueError: an option is out of its range.
    """

    repeats: int = 1
    fold: int = 0
    node_features: str = "labels"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("repeats", self.repeats)
        whole = isinstance(self.fold, int) and not isinstance(self.fold, bool)
        check_option("fold", self.fold, whole and 0 <= self.fold < FOLDS, f"from 0 to {FOLDS - 1}")
        check_choice("node_features", self.node_features, FEATURES)


PICARD = EquilibriumConfig(
    solver="fixed_point",
    forward_steps=300,
    rtol=1e-4,
    gradient="implicit",
    backward_solver="fixed_point",
    backward_steps=300,
)
"""As published, forward and backward, but for the tolerance: relative, and of each node."""

# Halved from the 51st epoch on, as published.
GRAPHS = IGNNTraining(
    epochs=200,
    batch_size=128,
    learning_rate=1e-3,
    schedule="step",
    decay_epochs=(50,),
    decay_factor=0.5,
)

PRESETS: dict[str, Preset] = {
    "chains": Preset(
        model=IGNNConfig.preset("chains"),
        # 300 steps of the 2000 published: the test accuracy stands still from the hundredth on.
        training=IGNNTraining(
            epochs=15,
            repeats=20,
            batch_size=1,
            learning_rate=0.01,
            weight_decay=5e-4,
            schedule="constant",
            clip_each=0.5,
        ),
        equilibrium=PICARD,
        data="chains",
    ),
    "karate": Preset(
        model=IGNNConfig.preset("karate"),
        training=IGNNTraining(
            epochs=5, repeats=20, batch_size=1, learning_rate=0.02, schedule="constant"
        ),
        equilibrium=PICARD,
        data="karate",
    ),
    "cox2": Preset(model=IGNNConfig.preset("cox2"), training=GRAPHS, equilibrium=PICARD, data="tu"),
    "proteins": Preset(
        model=IGNNConfig.preset("proteins"), training=GRAPHS, equilibrium=PICARD, data="tu"
    ),
    "ppi": Preset(
        model=IGNNConfig.preset("ppi"),
        training=IGNNTraining(epochs=1000, batch_size=1, learning_rate=5e-3, schedule="constant"),
        equilibrium=PICARD,
        data="ppi",
    ),
    "amazon": Preset(
        model=IGNNConfig.preset("amazon"),
        training=IGNNTraining(
            epochs=250, repeats=20, batch_size=1, learning_rate=0.01, schedule="constant"
        ),
        equilibrium=PICARD,
        data="amazon",
    ),
}
