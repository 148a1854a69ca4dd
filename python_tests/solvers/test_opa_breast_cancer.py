"""SHINE's figure 2 (right): outer-problem awareness inverts in the direction it was told of.

The setting of the paper's published experiment: ridge logistic regression without intercept on a
fifth of the breast-cancer data, features scaled to unit variance; L-BFGS with a memory of 60 to a
gradient of 1e-6, additional updates every 5 iterations. Each of the 100 runs has its own start,
prescribed direction and random direction; they are the samples of one batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

import deq_kernels as dk

pytestmark = pytest.mark.skipif(
    find_spec("sklearn") is None, reason="the data come with scikit-learn"
)

RUNS = 100


@dataclass(frozen=True)
class Ridge:
    """Σ log(1 + exp(−y_i xᵢᵀw)) + ½ ‖w‖² of each sample w."""

    features: Tensor  # [points, dim]
    labels: Tensor  # [points], ±1

    @classmethod
    def breast_cancer(cls) -> Ridge:
        from sklearn.datasets import load_breast_cancer
        from sklearn.model_selection import train_test_split

        features, labels = load_breast_cancer(return_X_y=True)
        features = features / features.std(axis=0)
        features, _, labels, _ = train_test_split(
            features, 2.0 * labels - 1.0, test_size=0.8, random_state=3
        )
        return cls(torch.from_numpy(features), torch.from_numpy(labels))

    def value(self, w: Tensor) -> Tensor:
        margins = w @ self.features.T * self.labels
        return 0.5 * w.square().sum(1) - torch.nn.functional.logsigmoid(margins).sum(1)

    def __call__(self, w: Tensor) -> Tensor:
        """w minus the gradient."""
        margins = w @ self.features.T * self.labels
        return -(((torch.sigmoid(margins) - 1) * self.labels) @ self.features)

    def hessian(self, w: Tensor) -> Tensor:
        p = torch.sigmoid(w @ self.features.T)
        weighted = (p * (1 - p))[:, :, None] * self.features
        return self.features.T @ weighted + torch.eye(w.shape[1], dtype=w.dtype)


def test_prescribed_direction_is_inverted_better_than_a_random_one() -> None:
    problem = Ridge.breast_cancer()
    dim = problem.features.shape[1]
    start, prescribed, unknown = torch.randn(3, RUNS, dim, dtype=torch.float64).unbind()
    better = {}
    for opa_every in (None, 5):
        awareness = {"opa_every": 5, "outer_gradient": lambda w: prescribed} if opa_every else {}
        solution = dk.LBFGS(
            max_steps=1000,
            rtol=0.0,
            atol=1e-6,
            stall_steps=None,
            history_length=60,
            objective=problem.value,
            **awareness,
        )(problem, start)
        assert solution.converged.all()
        hessian = problem.hessian(solution.z)
        cosines, ratios = {}, {}
        for name, direction in (("prescribed", prescribed), ("unknown", unknown)):
            exact = torch.linalg.solve(hessian, direction[:, :, None])[:, :, 0]
            found = -solution.inverse_jacobian.matvec(direction)
            cosines[name] = torch.cosine_similarity(exact, found, dim=1)
            ratios[name] = exact.norm(dim=1) / found.norm(dim=1)
        nearer = (ratios["prescribed"] - 1).abs() < (ratios["unknown"] - 1).abs()
        better[opa_every] = int(((cosines["prescribed"] > cosines["unknown"]) & nearer).sum())
    # Both the cosine and the ratio of norms are nearer to 1 (and without awareness by chance only).
    assert better[5] >= 95
    assert better[None] <= 65
    # The window of the paper's plot.
    assert (cosines["prescribed"] > 0.994).all()
    assert ((ratios["prescribed"] > 0.975) & (ratios["prescribed"] < 1.10)).all()
