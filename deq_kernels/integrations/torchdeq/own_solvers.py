"""This package's solvers with its own stopping rules, as functions that torchdeq can call."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from deq_kernels.integrations.torchdeq.record import MODES, Info, new_info
from deq_kernels.integrations.torchdeq.solvers import Map, OnInverse, Result
from deq_kernels.ops.norms import norm
from deq_kernels.options import check_callback, check_choice
from deq_kernels.solvers import SOLVERS, Solution, Solver


class OwnSolver:
    """A solver of this package with torchdeq's calling convention.

    Each sample stops by itself when its error is at most `tol`, and every index of `indexing`
    yields a state: the best iterates after that many evaluations, that at x0 counted, or the final
    ones where the solve has ended before.

    Args:
        solver: the class, whose options the calls may give as well.
    """

    def __init__(self, solver: type[Solver]) -> None:
        self.solver = solver
        self.__doc__ = f"deq_kernels.{solver.__name__}, called as torchdeq calls its solvers."

    def __call__(
        self,
        func: Map,
        x0: Tensor,
        max_iter: int = 50,
        tol: float = 1e-3,
        stop_mode: str = "abs",
        indexing: Collection[int] | None = None,
        *,
        on_inverse: OnInverse | None = None,
        **options: Any,
    ) -> Result:
        """Solve z = func(z) from x0.

        Args:
            func: f, a map of states [B, ...].
            x0: the start.
            max_iter: evaluations of f, at least 1.
            tol: tolerance on each sample's error.
            stop_mode: "abs", ‖f(z) − z‖₂, or "rel", ‖f(z) − z‖₂ / ‖f(z)‖₂.
            indexing: see the class.
            on_inverse: called with the estimate of (J − I)⁻¹, where the solver builds one.
            options: of the solver, such as `history_dtype`; `max_steps`, `rtol` and `atol` are said
                above.

        Returns:
            The best iterates, the states of `indexing`, and torchdeq's statistics with traces
            [B, max_iter]. The relative ones are −1 for GMRES, which evaluates f elsewhere than at
            its iterates.

        Raises:
            ValueError: an option is out of its range, or `indexing` is asked of GMRES, or
                `on_inverse` of a solver that builds no inverse.
            TypeError: an option is unknown, or x0 or f(z) is no state.
        """
        check_choice("stop_mode", stop_mode, MODES)
        check_callback("on_inverse", on_inverse)
        tolerances: dict[str, Any] = {
            "atol": 0.0,
            "rtol": 0.0,
            "atol" if stop_mode == "abs" else "rtol": tol,
        }
        solver = self.solver(max_steps=max_iter, **tolerances, **options)
        if on_inverse is not None and not solver.builds_inverse:
            raise ValueError(
                f"on_inverse needs a solver that builds an inverse Jacobian; got "
                f"{self.solver.__name__}. Use dk_broyden, or leave on_inverse out."
            )
        if indexing and solver.predicts_residuals:
            raise ValueError(
                "indexing needs a solver that evaluates f at its iterates; got "
                f"{self.solver.__name__}. Use dk_broyden, or leave indexing out."
            )
        # As in torchdeq, a vector [B] is B samples of one element.
        start = x0.reshape(-1, 1) if x0.dim() < 2 else x0
        seen = _Seen(func, x0, tuple(indexing or ()))
        solution = solver(seen, start, keep_inverse=on_inverse is not None)
        assert isinstance(solution.z, Tensor)
        if on_inverse is not None:
            assert solution.inverse_jacobian is not None
            on_inverse(solution.inverse_jacobian)
        states = [seen.after.get(index, solution.z).view(x0.shape) for index in indexing or ()]
        f_norms = None if solver.predicts_residuals else seen.f_norms
        return solution.z.view(x0.shape), states, _info(solution, f_norms, x0.dtype)


class _Seen:
    """f, and what torchdeq wants to know of its evaluations."""

    def __init__(self, func: Map, x0: Tensor, indexing: tuple[int, ...]) -> None:
        self._func, self._indexing = func, indexing
        self._shape = x0.shape
        self._lowest: Tensor | None = None
        self._best: Tensor | None = None
        self.f_norms: list[Tensor] = []
        self.after: dict[int, Tensor] = {}

    def __call__(self, z: Tensor) -> Tensor:
        f_z = self._func(z.view(self._shape)).reshape(z.shape)
        rows, images = (x.detach().reshape(len(z), -1) for x in (z, f_z))
        self.f_norms.append(norm(images))
        if len(self.f_norms) <= max(self._indexing, default=0):
            residual = norm(images.double() - rows.double())
            if self._best is None or self._lowest is None:
                self._lowest, self._best = residual, rows.clone()
            else:
                lower = residual < self._lowest
                self._lowest = torch.where(lower, residual, self._lowest)
                self._best = torch.where(lower[:, None], rows, self._best)
            if len(self.f_norms) in self._indexing:
                self.after[len(self.f_norms)] = self._best
        return f_z


def _info(solution: Solution, f_norms: list[Tensor] | None, dtype: torch.dtype) -> Info:
    """torchdeq's statistics of a solution."""
    number = torch.promote_types(dtype, torch.float32)
    trace, lowest = solution.trace, solution.residual
    # The evaluation at which a sample's residual is its best, counted from 1.
    nstep = trace.nan_to_num(nan=torch.inf).argmin(dim=1) + 1
    filled = torch.where(trace.isnan(), lowest[:, None], trace).to(number)
    if f_norms is None:
        missing = torch.full_like(filled, -1.0)
        return new_info(lowest.to(number), missing[:, 0], filled, missing, nstep.float())
    relative = torch.full_like(trace, torch.nan)
    if f_norms:
        norms = torch.stack(f_norms, dim=1)
        relative[:, : norms.shape[1]] = trace[:, : norms.shape[1]] / (norms + 1e-9)
    rel_lowest = relative.gather(1, nstep[:, None] - 1)[:, 0]
    relative = torch.where(relative.isnan(), rel_lowest[:, None], relative).to(number)
    return new_info(lowest.to(number), rel_lowest.to(number), filled, relative, nstep.float())


OWN_SOLVERS = {f"dk_{name}": OwnSolver(solver) for name, solver in SOLVERS.items()}
"""Names that `register` adds to torchdeq's."""

dk_broyden = OWN_SOLVERS["dk_broyden"]
dk_anderson = OWN_SOLVERS["dk_anderson"]
dk_fixed_point = OWN_SOLVERS["dk_fixed_point"]
dk_adjoint_broyden = OWN_SOLVERS["dk_adjoint_broyden"]
dk_lbfgs = OWN_SOLVERS["dk_lbfgs"]
dk_gmres = OWN_SOLVERS["dk_gmres"]
