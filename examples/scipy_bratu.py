"""The Bratu equation −u″ = λ eᵘ, u(0) = u(1) = 0, by SciPy's signature: alone, and 64 at once."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import deq_kernels as dk


def make_equation(points: int) -> Tensor:
    """(−d²/dx²)⁻¹ on the inner points of a grid, with which the equation is preconditioned."""
    width = 1.0 / (points + 1)
    second = 2 * torch.eye(points) - torch.diag(torch.ones(points - 1), 1)
    second = second - torch.diag(torch.ones(points - 1), -1)
    return torch.linalg.inv(second.double() / width**2)


def main(argv: Sequence[str] | None = None) -> float:
    """Solve, compare with SciPy where it is installed, and return the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=200, help="inner points (default: 200)")
    parser.add_argument("--batch", type=int, default=64, help="values of λ (default: 64)")
    parser.add_argument("--quick", action="store_true", help="few points and values")
    args = parser.parse_args(argv)
    points, batch = (20, 4) if args.quick else (args.points, args.batch)
    inverse = make_equation(points)
    parameters = torch.linspace(0.1, 3.4, batch, dtype=torch.float64)[:, None]

    def all_at_once(u: Tensor) -> Tensor:
        return parameters * torch.exp(u) @ inverse - u

    start = time.perf_counter()
    together = dk.root(
        all_at_once, torch.zeros(batch, points, dtype=torch.float64), tol=1e-10, batched=True
    )
    seconds = time.perf_counter() - start
    print(f"{batch} equations at once: {together.message} {seconds:.3f} s")
    print(f"steps, by λ: {together.nit.tolist()}")

    matrix = inverse.numpy()
    alone = []
    start = time.perf_counter()
    for value in parameters[:, 0].tolist():
        result = dk.root(
            lambda u, value=value: value * matrix @ np.exp(u) - u, np.zeros(points), tol=1e-10
        )
        alone.append(result.x)
    print(f"one after the other, as arrays: {time.perf_counter() - start:.3f} s")
    difference = float(np.abs(np.stack(alone) - together.x.numpy()).max())

    try:
        from scipy import optimize
    except ModuleNotFoundError:
        print("SciPy is not installed: nothing to compare with")
        return difference
    start = time.perf_counter()
    theirs = [
        optimize.root(
            lambda u, value=value: value * matrix @ np.exp(u) - u,
            np.zeros(points),
            method="broyden1",
            options={"fatol": 1e-11, "line_search": None, "jac_options": {"alpha": 1.0}},
        ).x
        for value in parameters[:, 0].tolist()
    ]
    print(f"SciPy, one after the other: {time.perf_counter() - start:.3f} s")
    difference = max(difference, float(np.abs(np.stack(theirs) - together.x.numpy()).max()))
    print(f"largest difference of all solutions: {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
