"""The ways this package has to run an op, and a `with` block that runs all ops in one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pytest
import torch

import deq_kernels as dk
from deq_kernels import _launches

REGIMES = ("block", "cluster", "grid")
# "cuda" leaves the choice to the planner.
CUDA_ENGINES = ("cuda", *(f"cuda-{regime}" for regime in REGIMES))
# Without a GPU one engine stands for all that are skipped.
GPU_ENGINES = (*CUDA_ENGINES, "triton") if torch.cuda.is_available() else ("cuda",)
ENGINES = ("cpu", *GPU_ENGINES)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Engine:
    """What ops run on inside the block.

    Attributes:
        name: "cpu", one of `CUDA_ENGINES`, or "triton".
        device: where its tensors are.
    """

    name: str
    device: torch.device


def why_absent(name: str) -> str | None:
    """Why an engine cannot run here, or None where it can."""
    if name == "cpu":
        return None
    if not torch.cuda.is_available():
        return "needs a GPU that torch can use"
    info = dk.backend_info()
    if name == "triton":
        return None if info.triton_version else "Triton is not installed"
    return info.cuda_library_absent


@contextmanager
def running(name: str) -> Iterator[Engine]:
    """Run every op on the engine inside the block; skips the test where it is absent."""
    if (absent := why_absent(name)) is not None:
        pytest.skip(absent)
    regime = name.removeprefix("cuda-")
    forced = _launches.force_regime(regime) if regime in REGIMES else nullcontext()
    with dk.use_backend("triton" if name == "triton" else "native"), forced:
        yield Engine(name, CPU if name == "cpu" else torch.device("cuda"))
