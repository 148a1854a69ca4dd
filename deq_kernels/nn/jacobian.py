"""Jacobian regularisation: keep ‖∂f/∂z‖ small, so that solves stay short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from deq_kernels.nn.flat_states import record, row_dot, vector_jacobian_product
from deq_kernels.options import check_count
from deq_kernels.solvers import State, Structure

Probes = Literal["gaussian", "rademacher"]
Reduction = Literal["mean", "none"]


def jacobian_penalty(
    f: Callable[..., State],
    z: State,
    *,
    probes: int = 1,
    distribution: Probes = "gaussian",
    reduction: Reduction = "mean",
    generator: torch.Generator | None = None,
) -> Tensor:
    """‖J‖_F² / d with J = ∂f/∂z at z, estimated with random probes.

    (1/k) Σ_i ‖Jᵀ ε_i‖² / d with k probes ε of mean 0 and covariance I (Hutchinson 1990), which is
    unbiased; Bai, Koltun and Kolter 2021 ("Stabilizing Equilibrium Models by Jacobian
    Regularization") add a multiple of it to the loss, with one Gaussian probe.

        z = layer(z0, x)
        loss = criterion(z) + 0.5 * jacobian_penalty(lambda v: layer.cell(v, x), z)

    Differentiable in the parameters of f and in what f closes over, where autograd is on; each
    probe is one VJP then, and one pass back through it. No gradient flows to z: the penalty holds
    z* fixed, as in the source. f may evaluate its samples together, but must not mix them. Its
    attention runs on PyTorch's unfused kernel, the only one that can be differentiated twice.

    Args:
        f: map of states to states, evaluated once.
        z: where J is taken, a tensor [B, ...] or a tuple of tensors.
        probes: k.
        distribution: of the probes' entries, "gaussian" or "rademacher" (signs, whose estimate
            has no larger variance, and none for a J whose rows are orthogonal).
        reduction: "mean" for the mean over the samples (0 for none), "none" for each one's value.
        generator: draws the probes, on the device of z; None for torch's global one. The same
            generator state, shape and device give the same probes.

    Returns:
        A scalar, or [B]; float64 for a float64 state, else float32.

    Raises:
        TypeError: z or f(z) has a wrong structure, dtype or device.
        ValueError: an option is out of its range, or f(z) has a wrong shape.
    """
    check_count("probes", probes)
    for name, value, choices in (
        ("distribution", distribution, get_args(Probes)),
        ("reduction", reduction, get_args(Reduction)),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")
    structure = Structure.of(z, "z")
    # Half precision would overflow at entries of 256.
    dtype = torch.float64 if structure.dtype == torch.float64 else torch.float32
    create_graph = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        with sdpa_kernel(SDPBackend.MATH):
            leaf, f_z = record(f, z, structure)
        total = torch.zeros(structure.batch, dtype=dtype, device=structure.device)
        for _ in range(probes):
            probe = _draw(leaf, distribution, generator)
            product = vector_jacobian_product(f_z, leaf, probe, create_graph)
            total = total + row_dot(product, product, dtype)
        penalty = total / (probes * max(structure.dim, 1))
        if reduction == "mean":
            penalty = penalty.sum() / max(structure.batch, 1)
    return penalty if create_graph else penalty.detach()


def _draw(like: Tensor, distribution: Probes, generator: torch.Generator | None) -> Tensor:
    """One probe [B, d]."""
    shape, device = like.shape, like.device
    if distribution == "gaussian":
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=device)
    bits = torch.randint(0, 2, shape, generator=generator, device=device)
    return (2 * bits - 1).to(like.dtype)
