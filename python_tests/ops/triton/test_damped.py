"""Damped steps in Triton, against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from deq_kernels.ops import damped
from deq_kernels.ops.termination import Tables
from python_tests.gpu.against_float64 import check_damped_step, check_neumann_step, same_bits
from python_tests.gpu.engines import Engine
from python_tests.gpu.states import DTYPES, damped_state, with_odd_rows

WHOLE, TILED = 37, 8200


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [WHOLE, TILED])
def test_step(engine: Engine, dim: int, dtype: torch.dtype) -> None:
    check_damped_step(engine, damped_state(dim, dtype), f_layout=with_odd_rows)


def test_a_full_step_lands_on_f(engine: Engine) -> None:
    """Not on z + (f - z), which rounding may part from it."""
    z, f_z = (torch.randn(2, 300, device=engine.device) for _ in range(2))
    tables = Tables.new(2, 5, z.device)
    options = {"rtol": 0.0, "atol": 0.0, "stall_steps": 0, "divergence_factor": 1e6}
    scratch = damped.new_scratch(z)
    damped.step_(f_z, z, z.clone(), tables, scratch, damping=1.0, **options)
    assert torch.equal(z, f_z)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, WHOLE, TILED])
def test_neumann_step(engine: Engine, dim: int, dtype: torch.dtype) -> None:
    check_neumann_step(engine, *(torch.randn(3, dim).to(dtype) for _ in range(3)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_w_is_rounded_as_torch_rounds(engine: Engine, dtype: torch.dtype) -> None:
    """Halves are exact in float32, so that one rounding remains; the largest overflow."""
    largest = torch.finfo(dtype).max
    sums = [(1.0, 2.0**-11), (1.0, 3 * 2.0**-11), (1.0, 2.0**-8), (1.0, 3 * 2.0**-8)]
    sums += [
        (largest, largest),
        (-largest, -largest),
        (2.0**-20, 2.0**-24),
        (torch.inf, -torch.inf),
    ]
    vjp, cotangent = torch.tensor(sums, device=engine.device).to(dtype).T.contiguous()[:, None]
    w = torch.zeros_like(vjp)
    norms = torch.empty(1, 2, dtype=torch.float64, device=engine.device)
    damped.neumann_step_(vjp, cotangent, w, norms, damping=1.0)
    assert same_bits(w.isnan().to(dtype), (vjp + cotangent).isnan().to(dtype))
    expected = (vjp.float() + cotangent.float()).to(dtype)
    assert torch.equal(w.nan_to_num(7.0), expected.nan_to_num(7.0))
