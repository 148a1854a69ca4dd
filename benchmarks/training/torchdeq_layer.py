"""The same cell, solved and differentiated by torchdeq."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from deq_kernels import DEQ
from deq_kernels.cells import StructuredCell
from deq_kernels.cells.map import StructuredMap
from deq_kernels.cells.slots import Slots
from deq_zoo.equilibrium import EquilibriumConfig

from ..provider import ProviderAbsentError

SOLVERS = {"broyden": "broyden", "anderson": "anderson", "fixed_point": "fixed_point_iter"}


class TorchdeqLayer(nn.Module):
    """What `DEQ` is to a model, with torchdeq's solvers, implicit differentiation and UPG.

    Args:
        layer: whose cell it takes.
        config: solvers, steps and tolerances, relative if there is a relative one.

    Raises:
        ProviderAbsentError: torchdeq has no such solver or gradient, or is not installed.
    """

    def __init__(self, layer: DEQ, config: EquilibriumConfig) -> None:
        super().__init__()
        try:
            from torchdeq import get_deq
        except ImportError as error:
            raise ProviderAbsentError("torchdeq is not installed: pip install torchdeq") from error
        self.cell = layer.cell
        self.last_solution = None
        self.steps: int | None = None
        mode = "rel" if config.rtol or not config.atol else "abs"
        tolerance = config.rtol if mode == "rel" else config.atol
        self.deq = get_deq(
            core="indexing",
            f_solver=_solver(config.solver),
            f_max_iter=config.forward_steps,
            f_tol=tolerance,
            f_stop_mode=mode,
            b_solver=_solver(config.backward_solver),
            b_max_iter=config.backward_steps,
            b_tol=tolerance,
            b_stop_mode=mode,
            **_gradient(config),
        )

    def forward(self, z0: Any, *args: Any, **kwargs: Any) -> Any:
        """Solve from z0, as `DEQ.forward`."""
        if isinstance(self.cell, StructuredCell):
            return self._by_graph(z0, self.cell.bind(*args, **kwargs))
        return self._solve(self.cell, z0, *args, **kwargs)

    def _by_graph(self, z0: Tensor, f: StructuredMap) -> Tensor:
        """A sample of a structured cell is a graph, and torchdeq's are rows."""
        assert f.graphs is not None
        slots = Slots.of(f.graphs)
        z = self._solve(lambda z: slots.spread(f(slots.gather(z))), slots.spread(z0))
        return slots.gather(z)

    def _solve(self, cell: Any, z0: Any, *args: Any, **kwargs: Any) -> Any:
        single = isinstance(z0, Tensor)

        def f(*z: Tensor) -> Any:
            out = cell(z[0] if single else z, *args, **kwargs)
            return out if single else list(out)

        (solution, *_), info = self.deq(f, z0 if single else list(z0))
        self.steps = int(info["nstep"].max())
        return solution if single else tuple(solution)


def _solver(name: str) -> str:
    if name not in SOLVERS:
        raise ProviderAbsentError(f"torchdeq has no solver like {name}")
    return SOLVERS[name]


def _gradient(config: EquilibriumConfig) -> dict[str, Any]:
    if config.gradient == "implicit":
        return {"ift": True}
    if config.gradient == "jfb":
        return {"grad": 1, "tau": 1.0}
    if config.gradient == "unrolled":
        from deq_zoo.choices import DAMPING, GRADIENT_STEPS

        return {
            "grad": config.gradient_steps or GRADIENT_STEPS,
            "tau": config.damping or DAMPING,
        }
    raise ProviderAbsentError(f"torchdeq has no gradient like {config.gradient}")
