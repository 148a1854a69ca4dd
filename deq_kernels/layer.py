"""The deep equilibrium layer: a cell, a solver and a gradient put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from deq_kernels.cells.map import StructuredMap
from deq_kernels.cells.pattern import Graphs
from deq_kernels.cells.slots import Slots
from deq_kernels.cells.structured import StructuredCell, check_start
from deq_kernels.compilers import call_as_written
from deq_kernels.gradients import (
    Gradient,
    Implicit,
    LayerCall,
    record_first,
    refuse_tangents,
    refuse_transforms,
)
from deq_kernels.gradients.watch import OnSolve, Watch
from deq_kernels.layer_arguments import check_arguments
from deq_kernels.ops import Status
from deq_kernels.solvers import (
    Broyden,
    FixedPoint,
    PerSample,
    Solution,
    Solver,
    State,
    Structure,
    evaluate,
)


class DEQ(nn.Module):
    """z* = cell(z*, x), differentiable in the cell's parameters and in x.

        layer = DEQ(cell, solver=Broyden(max_steps=18, rtol=1e-3), gradient=Shine(fallback=1.3))
        z = layer(z0, x)

    Args:
        cell: f. A callable, usually a module, called as cell(z, *args, **kwargs); z has the
            structure of z0 and so has what it returns. It must be the same function for all
            calls of one solve: resample dropout masks before, not inside. Under autograd the first
            of these calls records its graph, so that gradients reach what the cell keeps from it.
        solver: solves z = cell(z, x). Default: Broyden().
        gradient: attaches the gradient to the solution. Default: Implicit().
        eval_solver: used in evaluation mode instead of `solver`. Gradients flow in both modes.
        warm_start: start from the last solution where its shapes, dtype and device fit; samples
            that diverged there start from z0.
        per_sample: which arguments of the cell after z have one row per sample, by position in
            `layer(z0, *args)`, from 0, and by name: (0,) for the x of `layer(z0, x)`, () for none.
            A solver with `compact=True` hands the cell their rows of the samples that still run,
            and everything else as it is (`PerSample`). Each must be given in every call, as a
            tensor, a tuple of tensors, or None.
        on_solve: what to do after a solve that left samples unconverged (max_steps, stalled or
            diverged): "warn", once per layer and equation (an `UnconvergedWarning`); "raise" a
            `SolveError`; or "ignore" it. Or a function, called after every solve, whatever came
            out, as on_solve(solution, equation). The equation is "forward"; "adjoint", the one
            that the gradients Implicit and Adaptive solve; or "tangent", that of second
            derivatives. Without a tolerance, rtol = atol = 0, all steps were asked for, and only
            samples that diverged are unconverged. On a GPU the host does not wait in order to warn,
            but looks when a later solve begins; "raise" waits in every solve.

    z0 is [B, ...], and the cell must map each sample, a row, by itself: each stops by itself, too,
    and is left where it is. A `CoupledSamplesWarning`, once per layer, tells of rows that turn out
    to depend on others (see `Solver.__call__`), in the forward and in the adjoint solve; a
    `DetachedStateWarning` of a gradient that multiplies with ∂f/∂z where the cell detaches z.

    Raises:
        TypeError: an argument is of another kind than it must be.
        ValueError: the gradient needs an inverse Jacobian that a solver does not build, or a solver
            has `compact` set and `per_sample` is not given.
    """

    def __init__(
        self,
        cell: Callable[..., State],
        *,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        eval_solver: Solver | None = None,
        warm_start: bool = False,
        per_sample: Sequence[int | str] | None = None,
        on_solve: OnSolve = "warn",
    ) -> None:
        super().__init__()
        call_as_written(DEQ, "forward")
        check_arguments(cell, solver, gradient, eval_solver, warm_start, per_sample, on_solve)
        self.cell = cell
        self.solver = Broyden() if solver is None else solver
        self.gradient = Implicit() if gradient is None else gradient
        self.eval_solver = self.solver if eval_solver is None else eval_solver
        self.warm_start = warm_start
        self.per_sample = per_sample
        self.on_solve = on_solve
        self._told: set[str] = set()
        self._last_graphs: Graphs | None = None
        self.last_solution: Solution | None = None
        """The last solve, for logging; without its inverse, so that no history is kept alive."""
        for role, chosen in (("solver", self.solver), ("eval_solver", self.eval_solver)):
            if self.gradient.needs_inverse and not chosen.builds_inverse:
                raise ValueError(
                    f"{type(self.gradient).__name__} needs a solver that builds an inverse "
                    f"Jacobian; got {role}={type(chosen).__name__}. Use Broyden, or another "
                    "gradient."
                )
            if chosen.compact and per_sample is None:
                raise ValueError(
                    f"{role} has compact=True, so the layer must know which arguments of the cell "
                    "have one row per sample; got per_sample=None. Pass per_sample=(0,) for the x "
                    "of layer(z0, x), () for none."
                )

    def forward(self, z0: State, *args: Any, **kwargs: Any) -> State:
        """Solve from z0 and attach the gradient.

        Args:
            z0: initial state, a tensor [B, ...], or a tuple or NamedTuple of tensors. No gradient
                flows to it.
            *args: passed to the cell after z, usually the injected input x.
            **kwargs: passed to the cell.

        Returns:
            The solution, in the structure of z0 and in memory of its own; with `Unrolled` and
            autograd, the last unrolled state instead, which differs from it while the solve has not
            converged.

        Raises:
            NotImplementedError: called inside a transform of torch.func, or with forward-mode
                tangents; what would come out are wrong derivatives. Or the solve would be recorded
                (torch.jit.trace, torch.export, make_fx), or z0 has no values.
        """
        refuse_transforms()
        if isinstance(self.cell, StructuredCell):
            return self._solve_structured(z0, self.cell.bind(*args, **kwargs))
        per_sample = () if self.per_sample is None else self.per_sample
        return self._solve(self._evaluate, self._start(z0), args, kwargs, per_sample)

    @property
    def _solver(self) -> Solver:
        return self.solver if self.training else self.eval_solver

    def solves_in_one_op(self, solver: Solver | None = None) -> bool:
        """Whether the cell is a structured one that is solved in one op.

        Args:
            solver: by which solver; None for that of the present mode.
        """
        solver = self._solver if solver is None else solver
        return (
            isinstance(self.cell, StructuredCell)
            and self.cell.one_op
            and self.gradient.takes_structured
            and isinstance(solver, FixedPoint)
            and solver.takes_structured
        )

    def _solve(
        self,
        cell: Callable[..., State],
        start: State,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        per_sample: Sequence[int | str],
    ) -> State:
        """Step by step, with every solver and gradient."""
        structure = Structure.of(start, "z0")
        f = PerSample.of_call(cell, args, kwargs, per_sample)

        def flat(f: Callable[..., State]) -> Callable[[Tensor], Tensor]:
            def flat_f(z: Tensor) -> Tensor:
                allow_cast = torch.is_autocast_enabled(z.device.type)
                f_z = evaluate(f, structure.unflatten(z), z)
                return structure.flatten(f_z, allow_cast=allow_cast)

            return flat_f

        def with_inputs(others: Mapping[Tensor, Tensor]) -> Callable[[Tensor], Tensor]:
            other_args, other_kwargs = tree_map_only(
                Tensor, lambda tensor: others.get(tensor, tensor), (args, kwargs)
            )
            return flat(lambda z: cell(z, *other_args, **other_kwargs))

        solver = self._solver
        keep_inverse = self.gradient.needs_inverse and torch.is_grad_enabled()
        if torch.is_grad_enabled():
            record_first(f)
        watch = Watch(self.on_solve, self._told)
        with watch.during("forward"):
            solution = solver(f, start, keep_inverse=keep_inverse)
        self.last_solution = replace(solution, inverse_jacobian=None)
        watch.solved(self.last_solution, "forward")
        z_star = structure.flatten(solution.z)
        if torch.is_grad_enabled():
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            call = LayerCall(tuple(inputs), with_inputs, structure.separate, watch)
            z_star = self.gradient.attach(flat(f), z_star, solution.inverse_jacobian, call)
        # A copy, so that the caller may change the output in place.
        return structure.separate(z_star)

    def _evaluate(self, z: State, *args: Any, **kwargs: Any) -> State:
        f_z = self.cell(z, *args, **kwargs)
        refuse_tangents(f_z)
        return f_z

    def _solve_structured(self, z0: State, f: StructuredMap) -> Tensor:
        """In one op where solver and gradient know its form; else step by step.

        f of the best iterate is returned either way, the place at which φ' is taken.
        """
        z0 = check_start(z0, f)
        refuse_tangents((z0, *f.tensors))
        start = self._structured_start(z0, f)
        solver = self._solver
        if not self.solves_in_one_op():
            return self._solve_by_sample(start, f)
        assert isinstance(solver, FixedPoint)
        watch = Watch(self.on_solve, self._told)
        solution = solver.solve_structured(f, start)
        assert isinstance(solution.z, Tensor)
        z = self.gradient.attach_structured(f, solution.z, solver, watch)
        self.last_solution = solution
        watch.solved(solution, "forward")
        # A copy, so that the caller may change the output in place.
        return z.clone() if z.requires_grad else z

    def _solve_by_sample(self, start: Tensor, f: StructuredMap) -> Tensor:
        if f.graphs is None:
            z = self._solve(f.evaluate, start, f.tensors, {}, (0,))
        else:
            if self._solver.compact:
                raise ValueError(
                    "A GraphCell must be solved with compact=False, as its product with A is of "
                    "all graphs of a batch; got compact=True. Leave it out."
                )
            slots = Slots.of(f.graphs)

            def by_graph(z: Tensor, *tensors: Tensor) -> Tensor:
                return slots.spread(f.evaluate(slots.gather(z), *tensors))

            state = self._solve(by_graph, slots.spread(start), f.tensors, {}, ())
            assert isinstance(state, Tensor)
            z = slots.gather(state)
            assert self.last_solution is not None
            assert isinstance(self.last_solution.z, Tensor)
            self.last_solution = replace(self.last_solution, z=slots.gather(self.last_solution.z))
        assert isinstance(z, Tensor)
        if self.gradient.unrolls:
            return z
        y: Tensor = _StepFrom.apply(z, f)
        return y

    def _structured_start(self, z0: Tensor, f: StructuredMap) -> Tensor:
        """z0, or with warm start the last solution where it is of the same graphs."""
        if not self.warm_start:
            return z0
        last, graphs = self.last_solution, f.graphs
        same = self._last_graphs is graphs
        self._last_graphs = graphs
        if last is None or not same:
            return z0
        z = last.z
        assert isinstance(z, Tensor)
        if (z.shape, z.dtype, z.device) != (z0.shape, z0.dtype, z0.device):
            return z0
        usable = last.status != Status.DIVERGED
        if graphs is not None:
            usable = usable.index_select(0, graphs.of_row)
        return torch.where(usable[:, None], z, z0)

    def _start(self, z0: State) -> State:
        """z0, or with warm start the last solution where it fits."""
        last = self.last_solution
        if not self.warm_start or last is None:
            return z0
        structure = Structure.of(z0, "z0")
        if Structure.of(last.z, "z") != structure:
            return z0
        usable = (last.status != Status.DIVERGED)[:, None]
        start = torch.where(usable, structure.flatten(last.z), structure.flatten(z0))
        return structure.unflatten(start)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called for a layer that is unpickled."""
        super().__setstate__(state)
        call_as_written(DEQ, "forward")

    def __prepare_scriptable__(self) -> NoReturn:
        """Called by torch.jit.script on every module of a model."""
        raise NotImplementedError(
            "DEQ cannot be compiled by torch.jit.script: its solver is Python. Script the cell, "
            "DEQ(torch.jit.script(cell)), and the modules before and after the layer."
        )

    def extra_repr(self) -> str:
        """Solver and gradient, for print(module)."""
        return f"solver={self.solver}, gradient={self.gradient}"


class _StepFrom(torch.autograd.Function):
    """f(z) in the place of z, whose gradient it gets."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, f: StructuredMap) -> Tensor:
        return f.step(z)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return cotangent, None
