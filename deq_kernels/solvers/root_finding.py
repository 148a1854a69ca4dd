"""Roots of equations, called like `scipy.optimize.root`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deq_kernels.ops import Status
from deq_kernels.options import (
    check_callback,
    check_choice,
    check_count,
    check_flag,
    check_names,
    check_number,
    check_positive,
    plain,
)
from deq_kernels.solvers.base import Solver
from deq_kernels.solvers.machinery.root_record import RootRecord
from deq_kernels.solvers.registry import SOLVERS
from deq_kernels.solvers.solution import Solution

SCIPY_NAMES = {"broyden": "broyden1", "fixed_point": "linearmixing"}
"""SciPy's names of methods that have other names here."""

METHODS = {SCIPY_NAMES.get(name, name): solver for name, solver in SOLVERS.items()}

DEFAULT_TOLERANCE = float(np.finfo(np.float64).eps) ** (1 / 3)
"""SciPy's, 6.06e-6."""

MESSAGES = {
    Status.CONVERGED: "The residual is within the tolerance.",
    Status.MAX_STEPS: "The evaluations were used up.",
    Status.STALLED: "The residual has not fallen any more, or the steps are lost in rounding.",
    Status.DIVERGED: "The residual was not finite, or grew too far.",
}

HINT = (
    "the first step, along alpha times fun, made ‖fun‖ grow: alpha may have the wrong sign, or be "
    "too large."
)


class RootResult(dict[str, Any]):
    """What `root` found; keys are attributes too, as in SciPy's OptimizeResult.

    Attributes:
        x: the point with the smallest ‖fun(x)‖₂ of all evaluated, like x0.
        success: whether that is at most `fatol`; with `batched` [B] bool.
        status: `deq_kernels.Status`, as a number; with `batched` [B].
        message: what `status` says; with `batched` a count of samples. Where no root was found and
            the first step made ‖fun‖ grow, it says so.
        fun: fun(x), like x0.
        nit: steps taken; with `batched` [B].
        nfev: evaluations of `fun`, each of all samples; never more than `maxiter`.
        method: as given.
        solution: the `deq_kernels.Solution` of f(x) = x + α fun(x), with these statuses.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"a result has {', '.join(self)}; got {name!r}") from None

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{key:>{width}}: {value!r}" for key, value in self.items())

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]


def root(
    fun: Callable[..., Any],
    x0: Any,
    args: tuple[Any, ...] = (),
    method: str = "broyden1",
    *,
    tol: float | None = None,
    callback: Callable[[Any, Any], object] | None = None,
    options: Mapping[str, Any] | None = None,
    batched: bool = False,
) -> RootResult:
    """Solve fun(x) = 0, by the methods of this package under SciPy's names.

    A root of fun is a fixed point of f(x) = x + α fun(x), so that the first step is α fun(x), as in
    SciPy: B₀ = −I / α. α has to have the sign that makes this a step towards the root, and about
    its length; Broyden's method recovers from a poor one, fixed-point iteration does not.

    What is solved for is the distance from x0, which keeps digits that x would round away, and what
    decides is fun(x) itself: a root is a point with ‖fun(x)‖₂ ≤ `fatol`, at which its sample stops.

    Args:
        fun: fun(x, *args), of the shape, kind and dtype of x.
        x0: the start, of any shape, one problem unless `batched` (which needs equations that do not
            depend on each other): a tensor, or what numpy makes an array of; fun then receives
            arrays. Whole numbers become float64.
        args: further arguments of fun; a single one need not be a tuple.
        method: "broyden1"; "anderson"; "linearmixing", damped fixed-point iteration;
            "adjoint_broyden", for a fun that autograd differentiates; "lbfgs", for fun = ±∇r;
            "gmres", for an affine fun.
        tol: the same as the option fatol.
        callback: called as callback(x, fun(x)) after each evaluation.
        options: `maxiter`, largest number of evaluations (100); `fatol`, largest ‖fun(x)‖₂ of a
            root (6.06e-6), where SciPy takes the largest entry; `alpha`, α (1.0); and the further
            options of the method's solver, such as `history_length`, `damping`, `line_search` of
            `deq_kernels.Broyden`.
        batched: x0 is [B, ...], B independent equations, each of which stops by itself.

    Returns:
        The result; nothing is raised where no root was found.

    Raises:
        ValueError: an option is out of its range, or the method is not one of these.
        TypeError: an option is unknown, or x0 or what fun returns is no such array or tensor.
    """
    check_choice("method", method, METHODS)
    check_callback("callback", callback)
    check_flag("batched", batched)
    given = {name: plain(value) for name, value in (options or {}).items()}
    tol = plain(tol)
    if tol is not None and given.setdefault("fatol", tol) != tol:
        raise ValueError(f"tol and fatol are one thing; got {tol!r} and {given['fatol']!r}.")
    for name, other in (("max_steps", "maxiter"), ("atol", "fatol"), ("rtol", "fatol")):
        if name in given:
            raise TypeError(f"root has no option {name!r}; it is called {other!r} here.")
    check_names("root", given, _option_names(METHODS[method]))
    most, fatol = given.pop("maxiter", 100), given.pop("fatol", DEFAULT_TOLERANCE)
    alpha = given.pop("alpha", 1.0)
    check_count("maxiter", most)
    check_positive("fatol", fatol)
    check_number("alpha", alpha, lambda x: x != 0 and math.isfinite(x), "finite and not 0")
    solver = METHODS[method](
        max_steps=most, rtol=0.0, atol=abs(alpha) * fatol, **{"stall_steps": None, **given}
    )

    equation = _Equation.of(fun, x0, args, callback)
    if batched and equation.start.dim() == 0:
        raise ValueError("batched=True needs x0 [B, ...]; got one without dimensions.")
    shape = equation.start.shape
    start = _rows(equation.start if batched else equation.start[None])
    record = RootRecord(start, fatol=fatol, alpha=alpha)

    def f(distance: Tensor) -> Tensor:
        x = start + distance
        value = equation(x.view(shape)).reshape_as(x)
        record.add(x.detach(), value.detach())
        return distance + alpha * value

    solver = _around(solver, equation, start, batched)
    # A solver that cannot be stopped from outside goes by its own rule.
    stop = record.stop if solver.interruptible else None
    solution = solver._untraced()(f, torch.zeros_like(start), True, stop)
    record.settle(solution.tables)
    x = record.x.view(shape)
    return RootResult(
        x=equation.as_given(x),
        success=equation.table(solution.converged) if batched else bool(solution.converged[0]),
        status=equation.table(solution.status) if batched else int(solution.status[0]),
        message=_message(solution, batched, hints=method != "gmres"),
        fun=equation.as_given(record.value.view(shape)),
        nit=equation.table(solution.steps - 1) if batched else int(solution.steps[0]) - 1,
        nfev=equation.count,
        method=method,
        solution=replace(solution, z=x if batched else x[None]),
    )


def _option_names(solver: type[Solver]) -> set[str]:
    """What `options` may hold for a method."""
    own = {field.name for field in fields(solver)} - {"max_steps", "rtol", "atol"}
    return own | {"maxiter", "fatol", "alpha"}


def _rows(x: Tensor) -> Tensor:
    """[B, ...] as [B, n]."""
    return x.flatten(1) if x.dim() > 1 else x[:, None]


def _around(solver: Solver, equation: _Equation, start: Tensor, batched: bool) -> Solver:
    """The solver, with its functions of the iterate, which know x, as functions of the distance."""
    shape = equation.start.shape if batched else (1, *equation.start.shape)

    def of_distance(function: Callable[[Tensor], Tensor], gives_rows: bool) -> Callable[..., Any]:
        def shifted(distance: Tensor) -> Any:
            result = function((start + distance).view(shape))
            fits = gives_rows and isinstance(result, Tensor) and result.shape == shape
            return _rows(result) if fits else result

        return shifted

    changes: dict[str, Any] = {
        name: of_distance(function, gives_rows)
        for name, gives_rows in (("objective", False), ("outer_gradient", True))
        if (function := getattr(solver, name, None)) is not None
    }
    return replace(solver, **changes)


def _message(solution: Solution, batched: bool, *, hints: bool) -> str:
    missed, trace = ~solution.converged, solution.trace
    grew = 0
    if hints and trace.shape[1] > 1:
        # Not where the second one is NaN for want of an evaluation.
        grew = int((missed & (trace[:, 1] > trace[:, 0])).sum())
    if not batched:
        message, where = MESSAGES[Status(int(solution.status[0]))], "Moreover,"
    else:
        message = f"{int(solution.converged.sum())} of {len(missed)} samples converged."
        where = f"In {grew} of the others"
    return f"{message} {where} {HINT}" if grew else message


@dataclass
class _Equation:
    """fun as a function of tensors, whichever kind of array it takes."""

    fun: Callable[..., Any]
    start: Tensor
    args: tuple[Any, ...]
    callback: Callable[[Any, Any], object] | None
    takes_arrays: bool
    count: int = 0

    @classmethod
    def of(
        cls,
        fun: Callable[..., Any],
        x0: Any,
        args: Any,
        callback: Callable[[Any, Any], object] | None,
    ) -> _Equation:
        args = args if isinstance(args, tuple) else (args,)
        if isinstance(x0, Tensor):
            start = x0.detach()
            start = start if start.is_floating_point() else start.double()
            return cls(fun, start, args, callback, takes_arrays=False)
        array = np.asarray(x0)
        if array.dtype.kind in "iub":
            array = array.astype(np.float64)
        if array.dtype not in (np.float64, np.float32, np.float16):
            raise TypeError(f"x0 must be a tensor or an array of real numbers; got {array.dtype}.")
        return cls(fun, torch.from_numpy(array.copy()), args, callback, takes_arrays=True)

    def __call__(self, x: Tensor) -> Tensor:
        """fun(x) as a tensor, checked."""
        self.count += 1
        given = self.as_given(x.clone() if self.takes_arrays else x)
        value = self.fun(given, *self.args)
        if self.takes_arrays:
            # A number for an array of one element, as SciPy allows.
            array = np.asarray(value, dtype=given.dtype)
            value = torch.from_numpy(array.copy())
        if not isinstance(value, Tensor):
            raise TypeError(f"fun must return a tensor for a tensor; got {type(value).__name__}.")
        if value.numel() != x.numel():
            raise ValueError(
                f"fun must return as many numbers as x has, {list(x.shape)}; got "
                f"{list(value.shape)}."
            )
        if self.callback is not None:
            self.callback(given, self.as_given(value.detach().reshape(x.shape)))
        return value.reshape(x.shape)

    def as_given(self, x: Tensor) -> Any:
        """x as the caller knows it."""
        return x.numpy() if self.takes_arrays else x

    def table(self, x: Tensor) -> Any:
        """A number per sample, likewise."""
        return x.numpy() if self.takes_arrays else x
