"""Solver and gradients of a layer on one batch, against the exact gradient."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deq_kernels.diagnostics.captured import ForwardPass, forward_pass
from deq_kernels.diagnostics.diagnosis import (
    Diagnosis,
    EstimatorReport,
    ForwardReport,
    JacobianReport,
)
from deq_kernels.diagnostics.estimators import (
    Measurement,
    default_estimators,
    measure,
    silenced,
)
from deq_kernels.diagnostics.exact import Point, adjoint_residual, default_exact, in_float64
from deq_kernels.diagnostics.unchanged import unchanged
from deq_kernels.gradients import Gradient
from deq_kernels.layer import DEQ
from deq_kernels.nn import one_solve, spectral_radius
from deq_kernels.nn.flat_states import row_dot
from deq_kernels.ops import Status
from deq_kernels.solvers import Solver, State, Structure


def diagnose(
    layer: DEQ,
    z0: State,
    *args: Any,
    loss: Callable[[State], Tensor] | None = None,
    estimators: Mapping[str, Gradient] | None = None,
    exact: Gradient | None = None,
    float64: bool = False,
    parameters: Iterable[Tensor] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    power_steps: int = 50,
    seed: int = 0,
) -> Diagnosis:
    """How the layer solves this batch, and how good each gradient estimator is on it.

        diagnosis = diagnose(layer, z0, x, loss=lambda z: criterion(head(z), target))
        print(diagnosis)

    One forward solve from z0, with the solver of the layer's present mode and without warm start;
    then every estimator is attached to its solution z* and given the same ℓ = ∂loss/∂z at z*.
    With `Unrolled`, whose output is not z*, w is what (∂f/∂θ)ᵀ would have to be multiplied with,
    all its steps together.

    Nothing of the layer changes: parameters, gradients, buffers, mode, last solution, and torch's
    random number generators are as before, after an error too (`unchanged` says exactly).

    Args:
        layer: the layer.
        z0: the initial state.
        *args: what the cell takes after z.
        loss: scalar of the state, whose gradient is ℓ; a mean over the batch is fine, for every
            number is relative. None: ℓ is Gaussian noise.
        estimators: name to estimator; None for every one of the package with its defaults, and the
            layer's own.
        exact: the reference; None for `Implicit` with a tight tolerance. What it reached is in the
            result.
        float64: compute the reference and all adjoint residuals on a float64 copy of the cell, at
            the same z*.
        parameters: what to compare parameter gradients on; None for the layer's parameters that
            require grad, and none where there are none. Give a closure's tensors here.
        kwargs: keyword arguments of the cell.
        power_steps: VJPs spent on the spectral radius.
        seed: of the noise.

    Raises:
        TypeError: the layer is no `DEQ`, or float64 with a cell that is no module.
        ValueError: loss is not a scalar; parameters that do not require grad; float64 with
            parameters that are not the cell's.
    """
    if not isinstance(layer, DEQ):
        raise TypeError(
            f"layer must be a deq_kernels.DEQ; got {type(layer).__name__}. For a model, give the "
            "DEQ within it, and what the model calls it with."
        )
    structure = Structure.of(z0, "z0")
    cell_kwargs = dict(kwargs or {})
    chosen = _parameters(layer, parameters)
    if estimators is None:
        estimators = default_estimators(silenced(layer.gradient))
    generator = torch.Generator(structure.device).manual_seed(seed)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        unchanged(layer, structure.device),
        one_solve(layer),
    ):
        forward = forward_pass(layer, z0, args, cell_kwargs)
        point = Point(forward.f, forward.z_star, chosen)
        cotangent = _cotangent(loss, forward.z_star, structure, generator)
        radius = spectral_radius(point.f, point.z, max_steps=power_steps, generator=generator)
        with contextlib.ExitStack() as stack:
            reference = point
            if float64:
                reference = stack.enter_context(
                    in_float64(layer.cell, forward.solution.z, args, cell_kwargs, chosen)
                )
            if exact is None:
                exact = default_exact(reference.z.dtype)
            residual = adjoint_residual(reference, cotangent)
            # The estimate of the inverse has the dtype of the solve.
            inverse = None if float64 else forward.inverse
            truth = measure(exact, reference, inverse, cotangent)
        truth_name = type(exact).__name__ + (" in float64" if float64 else "")
        reports = []
        for name, gradient in estimators.items():
            if gradient.needs_inverse and forward.inverse is None:
                reason = f"{type(forward.solver).__name__} builds no inverse"
                reports.append(EstimatorReport(name=name, skipped=reason))
            else:
                measured = measure(gradient, point, forward.inverse, cotangent)
                reports.append(_compare(name, measured, truth, residual))
        return Diagnosis(
            batch=structure.batch,
            dim=structure.dim,
            dtype=str(structure.dtype).removeprefix("torch."),
            parameters=sum(parameter.numel() for parameter in chosen),
            forward=_forward_report(forward, structure.flatten(z0)),
            jacobian=JacobianReport(
                spectral_radius=_floats(radius.radius),
                converged=tuple(radius.converged.tolist()),
                steps=tuple(radius.steps.tolist()),
            ),
            exact=_compare(truth_name, truth, truth, residual),
            estimators=tuple(reports),
        )


def _described(solver: Solver) -> str:
    """The solver with the options that are not its defaults."""
    options = [
        f"{field.name}={getattr(solver, field.name)!r}"
        for field in dataclasses.fields(solver)
        if getattr(solver, field.name) != field.default
    ]
    return f"{type(solver).__name__}({', '.join(options)})"


def _parameters(layer: DEQ, parameters: Iterable[Tensor] | None) -> list[Tensor]:
    if parameters is None:
        return [parameter for parameter in layer.parameters() if parameter.requires_grad]
    chosen = list(parameters)
    if not all(parameter.requires_grad for parameter in chosen):
        raise ValueError("parameters must all require grad; leave out those that do not.")
    return chosen


def _cotangent(
    loss: Callable[[State], Tensor] | None,
    z_star: Tensor,
    structure: Structure,
    generator: torch.Generator,
) -> Tensor:
    """ℓ [B, d] in the state's dtype."""
    if loss is None:
        return torch.randn(
            z_star.shape, generator=generator, dtype=z_star.dtype, device=z_star.device
        )
    leaf = z_star.clone().requires_grad_()
    value = loss(structure.unflatten(leaf))
    if value.numel() != 1:
        raise ValueError(f"loss must return a scalar; got shape {list(value.shape)}.")
    if not value.requires_grad:
        raise ValueError("loss must depend on the state it is given; its gradient is zero.")
    (cotangent,) = torch.autograd.grad(value, leaf, materialize_grads=True)
    return cotangent


def _compare(
    name: str, measured: Measurement, truth: Measurement, residual: Callable[[Tensor], Tensor]
) -> EstimatorReport:
    """Cosines and norm ratios in float64."""
    w, exact_w = measured.w, truth.w
    length, exact_length = row_dot(w, w).sqrt(), row_dot(exact_w, exact_w).sqrt()
    cosine: float | None = None
    ratio: float | None = None
    if measured.parameters:
        dots = [_dot(measured.parameters, truth.parameters)]
        dots += [_dot(each, each) for each in (measured.parameters, truth.parameters)]
        product, square, exact_square = torch.stack(dots)
        cosine = float(product / (square.sqrt() * exact_square.sqrt()))
        ratio = float((square / exact_square).sqrt())
    return EstimatorReport(
        name=name,
        adjoint_cosine=_floats(row_dot(w, exact_w) / (length * exact_length)),
        adjoint_norm_ratio=_floats(length / exact_length),
        adjoint_residual=_floats(residual(w)),
        parameter_cosine=cosine,
        parameter_norm_ratio=ratio,
        vjps=measured.backward_passes - 1,
        evaluations=measured.evaluations,
    )


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Sum over all entries of all tensors."""
    products = [(a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)]
    return torch.stack(products).sum()


def _forward_report(forward: ForwardPass, z0: Tensor) -> ForwardReport:
    solution = forward.solution
    steps = solution.steps.tolist()
    moved = forward.z_star.double() - z0.double()
    first = solution.trace[:, 0]
    reduction = (solution.residual / first) ** (1.0 / (solution.steps - 1))
    return ForwardReport(
        solver=_described(forward.solver),
        status=tuple(Status(value).name.lower() for value in solution.status.tolist()),
        steps=tuple(steps),
        residual=_floats(solution.residual),
        trace=tuple(
            tuple(row[:count]) for row, count in zip(solution.trace.tolist(), steps, strict=True)
        ),
        reduction=_floats(torch.where(solution.steps > 1, reduction, torch.nan)),
        distance=_floats(row_dot(moved, moved).sqrt()),
        norm=_floats(row_dot(forward.z_star, forward.z_star).sqrt()),
    )


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())
