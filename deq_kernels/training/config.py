"""Everything that decides the outcome of a training run."""

from dataclasses import dataclass

from deq_kernels.training.schedule import FINAL_LEARNING_RATE

DATASETS = ("digits",)
SOLVERS = ("broyden", "fixed_point")
GRADIENTS = ("implicit", "jfb", "shine", "neumann", "unrolled")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A training run; two runs with equal configs give the same bits on one kind of processor.

    Args:
        data: name of the dataset, see `DATASETS`.
        preset: name of the MDEQ architecture, adapted to the image shape of the dataset.
        gradient: name of the gradient estimator, see `GRADIENTS`.
        solver: name of the forward solver, see `SOLVERS`.
        solver_steps: most evaluations of the cell per forward solve; None: the preset's.
        rtol: relative tolerance of the forward solve, and of the implicit backward solve.
        gradient_steps: implicit: most steps of the backward solve (None: the preset's); neumann
            and unrolled: number of terms (None: 5). The others take none.
        damping: of neumann and unrolled (None: 0.5). The others take none.
        pretrain_epochs: epochs of plain backpropagation through the unrolled cell, done first.
        pretrain_steps: applications of the cell in pretraining; None: the preset's.
        epochs: epochs of equilibrium training.
        batch_size: images per step of the optimiser.
        learning_rate: Adam's, at the first step; a cosine lowers it to 1e-6 at the last.
        weight_decay: Adam's.
        seed: of the initial weights, the split, the order of the batches and the dropout masks.
        threads: used by PyTorch. One is as fast as two on 8x8 images, and does not wait for a core
            that something else occupies.

    Raises:
        ValueError: a number is out of its range, or there is no epoch at all.
    """

    data: str = "digits"
    preset: str = "digits"
    gradient: str = "shine"
    solver: str = "broyden"
    solver_steps: int | None = None
    rtol: float = 1e-3
    gradient_steps: int | None = None
    damping: float | None = None
    pretrain_epochs: int = 3
    pretrain_steps: int | None = None
    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        least = {
            "epochs": 0,
            "pretrain_epochs": 0,
            "total_epochs": 1,
            "batch_size": 1,
            "threads": 1,
            "learning_rate": FINAL_LEARNING_RATE,
            "weight_decay": 0.0,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if not value >= bound:
                raise ValueError(f"{name} must be at least {bound}, got {value}")

    @property
    def total_epochs(self) -> int:
        """Pretraining and equilibrium epochs together."""
        return self.pretrain_epochs + self.epochs
