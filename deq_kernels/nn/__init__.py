"""Modules a deep equilibrium cell is built from, penalties on it, and measures of it."""

from deq_kernels.nn.cached import one_solve
from deq_kernels.nn.correction import Correction, correction_weights, fixed_point_correction
from deq_kernels.nn.dropout import VariationalDropout
from deq_kernels.nn.jacobian import jacobian_penalty
from deq_kernels.nn.nonlinear_radius import nonlinear_spectral_radius
from deq_kernels.nn.normalization import spectral_norm, weight_norm
from deq_kernels.nn.power_method import SpectralRadius
from deq_kernels.nn.radius import spectral_radius
from deq_kernels.nn.well_posed import (
    PerronRadius,
    perron_frobenius_bound,
    perron_radius,
    project_infinity_norm,
)

__all__ = [
    "Correction",
    "PerronRadius",
    "SpectralRadius",
    "VariationalDropout",
    "correction_weights",
    "fixed_point_correction",
    "jacobian_penalty",
    "nonlinear_spectral_radius",
    "one_solve",
    "perron_frobenius_bound",
    "perron_radius",
    "project_infinity_norm",
    "spectral_norm",
    "spectral_radius",
    "weight_norm",
]
