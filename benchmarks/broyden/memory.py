"""Peak memory of a solve on the CPU, each provider in a process of its own."""

import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from ..provider import find_provider
from .cases import Case
from .elsewhere import SolverElsewhere
from .problem import make_problem
from .providers import PROVIDERS, SolveProvider

_WARM_UP = Case(2, 256, 3)
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def can_measure_memory() -> bool:
    """Whether this system lets a process read and reset its peak memory (Linux does)."""
    return _STATUS.exists() and _CLEAR_REFS.exists()


def peak_solver_bytes(
    provider: SolveProvider, case: Case, *, dtype: torch.dtype, threads: int
) -> int:
    """Growth of the resident memory from just before a solve to its peak, in bytes.

    The resident set counts what the system really had to give: tensors, workspaces of native code
    and whatever an allocator keeps, unlike a profiler, which sees only torch's own allocations.
    A fresh process per provider keeps memory that one solve left behind from serving the next.
    The map, its two output buffers and z0 exist before the solve; the returned z is counted.

    Args:
        provider: one of ``PROVIDERS``; the new process looks it up by its name.
        case: what to solve.
        dtype: dtype of the state.
        threads: number of threads torch uses.

    Raises:
        ProviderAbsentError: the provider cannot run here.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(_peak_growth, provider.name, case, dtype, threads).result()


def _peak_growth(provider_name: str, case: Case, dtype: torch.dtype, threads: int) -> int:
    torch.set_num_threads(threads)
    provider = find_provider(provider_name, PROVIDERS)
    solve = provider.load("cpu")
    warm_up = make_problem(_WARM_UP, dtype=dtype)
    with provider.context():
        solve(warm_up.f, warm_up.z0, _WARM_UP.steps)

    problem = make_problem(case, dtype=dtype)
    if isinstance(solve, SolverElsewhere):
        return solve.peak_bytes(problem.f, problem.z0, case.steps)
    for _ in range(2):  # touches both output buffers of the map
        problem.f(problem.z0)
    gc.collect()
    before = _status_bytes("VmRSS")
    _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
    with provider.context():
        solve(problem.f, problem.z0, case.steps)
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == field:
            return int(value.removesuffix("kB")) * 1024
    raise RuntimeError(f"{_STATUS} must list {field}, but does not; memory needs a Linux kernel")
