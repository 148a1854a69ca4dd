"""A call of every op that it accepts: arguments by their name in the schema."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.gmres.table import table_size
from deq_kernels.ops.termination import Counter, Norm
from deq_kernels.ops.tiles import tile_count

Arguments = dict[str, Any]

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
STOPPING: Arguments = {
    "rtol": 1e-3,
    "atol": 1e-6,
    "damping": 0.9,
    "stall_steps": 4,
    "divergence_factor": 1e3,
}


class Sizes:
    """Of one call: small, and around the edges of a tile where `large` ones may be drawn."""

    def __init__(self, choice: random.Random, *, large: bool) -> None:
        self.batch = choice.randint(1, 3)
        self.dim = choice.choice((1, 3, 16, 70, 4096, 4099) if large else (1, 3, 16, 70))
        self.capacity = choice.randint(1, 4)
        self.columns = choice.randint(1, 2)
        self.max_steps = choice.randint(2, 5)
        self.dtype = choice.choice(DTYPES)
        self.history_dtype = choice.choice((self.dtype, torch.bfloat16))

    def state(self, *shape: int) -> Tensor:
        return torch.randn(shape).to(self.dtype)

    def rows(self, count: int) -> Tensor:
        return torch.randn(self.batch, count, self.dim).to(self.history_dtype)

    def counts(self, most: int) -> Tensor:
        return torch.randint(0, most + 1, (self.batch,))

    def scratch(self, sums: int) -> Tensor:
        return torch.randn(self.batch, tile_count(self.dim, "cpu") + 1, sums).double()

    def tables(self, batch: int, most: int) -> Arguments:
        """Samples in the middle of their solve, most of which still run."""
        record = torch.rand(batch, len(Norm) + self.max_steps).double()
        record[:, Norm.SCALE] = 1.0
        counters = torch.zeros(batch, len(Counter), dtype=torch.int64)
        counters[:, Counter.STATUS] = torch.randint(0, 5, (batch,)) * torch.randint(0, 2, (batch,))
        counters[:, Counter.STEPS] = torch.randint(0, self.max_steps, (batch,))
        counters[:, Counter.COUNT] = torch.randint(0, most + 1, (batch,))
        active = (counters[:, Counter.STATUS] == 0).sum()[None]
        return {"record": record, "counters": counters, "active": active}

    def step(self, most: int, sums: int) -> Arguments:
        """What every solver's step takes."""
        states = {name: self.state(self.batch, self.dim) for name in ("f_z", "z", "best_z")}
        tables = self.tables(self.batch, most)
        return {**states, **tables, "scratch": self.scratch(sums), **STOPPING}


def _broyden_step(sizes: Sizes) -> Arguments:
    capacity = sizes.capacity
    return {
        **sizes.step(capacity - 1, 2 + 2 * capacity),
        "directions": sizes.rows(capacity),
        "algebra": torch.rand(sizes.batch, capacity, capacity + 2).double(),
        "gamma": 0.8,
        "finish_inverse": True,
        "drop_oldest": False,
        "estimate_gamma": False,
        "max_backtracks": 1,
    }


def _broyden_matvec(sizes: Sizes) -> Arguments:
    capacity = sizes.capacity
    return {
        "directions": sizes.rows(capacity),
        "algebra": torch.rand(sizes.batch, capacity, capacity + 2).double(),
        "rank": sizes.counts(capacity - 1),
        "x": sizes.state(sizes.batch, sizes.columns, sizes.dim),
        "scale": -0.8,
        "transpose": False,
    }


def _anderson_step(sizes: Sizes) -> Arguments:
    capacity = sizes.capacity
    return {
        **sizes.step(2 * capacity, 2 + 2 * capacity),
        "residual_changes": sizes.rows(capacity),
        "image_changes": sizes.rows(capacity),
        "last_residual": sizes.state(sizes.batch, sizes.dim),
        "algebra": torch.rand(sizes.batch, capacity, 2 * capacity).double(),
        "regularization": 1e-4,
    }


def _gmres_step(sizes: Sizes) -> Arguments:
    columns, accum = sizes.capacity, accumulate_dtype(sizes.dtype)
    vectors = torch.randn(columns + 3, sizes.batch, sizes.dim).to(accum)
    return {
        **sizes.step(columns, 4 + columns),
        "basis": vectors[2:].transpose(0, 1).contiguous(),
        "start": vectors[0].clone(),
        "start_residual": vectors[1].clone(),
        "algebra": torch.rand(sizes.batch, table_size(columns)).double(),
    }


def _damped_step(sizes: Sizes) -> Arguments:
    return sizes.step(0, 2)


def _neumann_step(sizes: Sizes) -> Arguments:
    states = {name: sizes.state(sizes.batch, sizes.dim) for name in ("vjp", "cotangent", "w")}
    return {**states, "norms": torch.rand(sizes.batch, 2).double(), "damping": 0.5}


def _rows_and_x(sizes: Sizes) -> Arguments:
    return {
        "rows": sizes.rows(sizes.capacity),
        "count": sizes.counts(sizes.capacity),
        "x": sizes.state(sizes.batch, sizes.columns, sizes.dim),
    }


def _combine(sizes: Sizes) -> Arguments:
    coefficients = torch.randn(sizes.batch, sizes.columns, sizes.capacity).double()
    return {**_rows_and_x(sizes), "coefficients": coefficients, "scale": -0.8}


def _matvec(sizes: Sizes) -> Arguments:
    return {
        "u": sizes.rows(sizes.capacity),
        "v": sizes.rows(sizes.capacity),
        "rank": sizes.counts(sizes.capacity),
        "x": sizes.state(sizes.batch, sizes.columns, sizes.dim),
        "scale": -0.8,
    }


def _append(sizes: Sizes) -> Arguments:
    arguments = _matvec(sizes)
    del arguments["x"]
    states = {name: sizes.state(sizes.batch, sizes.dim) for name in ("s", "y")}
    return {**arguments, **states}


def _cells(sizes: Sizes) -> Arguments:
    """Rows that are samples, or graphs of one to three nodes, each of which sees its graph's."""
    dim = min(sizes.dim, 70)
    arguments: Arguments = {
        "weight": (0.5 / dim) * sizes.state(dim, dim),
        "crow": None,
        "col": None,
        "values": None,
        "sample_ptr": None,
        "scale": None,
        "activation": 1,
        "norm": 0,
        "fixed_steps": False,
        "accelerate": True,
    }
    rows = sizes.batch
    if sizes.columns > 1:
        nodes = torch.randint(1, 4, (sizes.batch,))
        ends = nodes.cumsum(0)
        rows = int(ends[-1])
        start = torch.zeros(1, dtype=torch.int64)
        graph_of_node = torch.arange(sizes.batch).repeat_interleave(nodes)
        entries = nodes[graph_of_node]
        arguments["sample_ptr"] = torch.cat((start, ends))
        arguments["crow"] = torch.cat((start, entries.cumsum(0)))
        arguments["col"] = torch.cat(
            [torch.arange(int(ends[g] - nodes[g]), int(ends[g])) for g in graph_of_node]
        )
        arguments["values"] = 0.3 * sizes.state(int(entries.sum()))
        arguments["scale"] = sizes.state(rows, dim)
    states = {"bias": sizes.state(rows, dim), "z": sizes.state(rows, dim)}
    return {**arguments, **states, **sizes.tables(sizes.batch, 0), **STOPPING}


def _history_memory(sizes: Sizes) -> Arguments:
    return {"like": sizes.state(1), "bytes": 4096 * sizes.batch}


VALID_CALLS: dict[str, Callable[[Sizes], Arguments]] = {
    "anderson_step_": _anderson_step,
    "broyden_matvec": _broyden_matvec,
    "broyden_step_": _broyden_step,
    "cells_iterate_": _cells,
    "damped_step_": _damped_step,
    "gmres_step_": _gmres_step,
    "history_memory": _history_memory,
    "low_rank_append_": _append,
    "low_rank_combine": _combine,
    "low_rank_dots": _rows_and_x,
    "low_rank_matvec": _matvec,
    "low_rank_project_out_": _rows_and_x,
    "neumann_step_": _neumann_step,
}
