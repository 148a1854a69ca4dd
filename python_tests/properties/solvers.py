"""Solvers with any of their options."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

import deq_kernels as dk
from python_tests.properties.cases import TOLERANCE, Contraction, contractions

HISTORY_LENGTHS = st.sampled_from((None, 1, 2, 3, 20))


def _stopping(problem: Contraction) -> dict[str, Any]:
    return {"max_steps": 60, "rtol": TOLERANCE[problem.bias.dtype], "stall_steps": None}


@st.composite
def solved_problems(draw: st.DrawFn) -> tuple[dk.Solver, Contraction]:
    """A solver, and a problem that it must be able to solve."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    problem = draw(
        contractions(
            affine=True if kind == "GMRES" else None, symmetric=True if kind == "LBFGS" else None
        )
    )
    solver: dk.Solver = KINDS[kind](draw, problem)
    return solver, problem


def _broyden(draw: st.DrawFn, problem: Contraction) -> dk.Solver:
    dtypes = (None, torch.bfloat16) if problem.bias.dtype == torch.float32 else (None,)
    return dk.Broyden(
        **_stopping(problem),
        history_length=draw(HISTORY_LENGTHS),
        history_dtype=draw(st.sampled_from(dtypes)),
        damping=draw(st.sampled_from((1.0, 0.8))),
        gamma=draw(st.sampled_from((1.0, 0.5, "auto"))),
        line_search=draw(st.sampled_from((None, "derivative_free"))),
        when_full=draw(st.sampled_from(("restart", "drop_oldest"))),
    )


def _anderson(draw: st.DrawFn, problem: Contraction) -> dk.Solver:
    return dk.Anderson(
        **_stopping(problem),
        history_length=draw(st.integers(1, 6)),
        damping=draw(st.sampled_from((1.0, 0.8))),
    )


def _fixed_point(draw: st.DrawFn, problem: Contraction) -> dk.Solver:
    return dk.FixedPoint(**_stopping(problem), damping=draw(st.sampled_from((1.0, 0.8))))


def _gmres(draw: st.DrawFn, problem: Contraction) -> dk.Solver:
    return dk.GMRES(**_stopping(problem))


def _adjoint_broyden(draw: st.DrawFn, problem: Contraction) -> dk.Solver:
    return dk.AdjointBroyden(**_stopping(problem))


def _lbfgs(draw: st.DrawFn, problem: Contraction) -> dk.Solver:
    return dk.LBFGS(**_stopping(problem), line_search=draw(st.sampled_from((None, "armijo"))))


KINDS = {
    "Broyden": _broyden,
    "FixedPoint": _fixed_point,
    "Anderson": _anderson,
    "GMRES": _gmres,
    "AdjointBroyden": _adjoint_broyden,
    "LBFGS": _lbfgs,
}
