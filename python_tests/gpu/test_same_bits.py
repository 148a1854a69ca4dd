"""Bit for bit: every run, every regime and every batch gives a sample the same answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from python_tests.gpu.against_float64 import same_bits
from python_tests.gpu.engines import CUDA_ENGINES, Engine, running
from python_tests.gpu.every_op import Inputs, run

DTYPES = (
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
)
DIMS = (7, 2049, 40_003)


def differences(actual: list[Tensor], expected: list[Tensor]) -> list[int]:
    """Positions in two lists of tensors at which a bit differs."""
    pairs = zip(actual, expected, strict=True)
    return [i for i, (now, before) in enumerate(pairs) if not same_bits(now, before)]


def outputs(engine: Engine, inputs: Inputs) -> list[Tensor]:
    """What every op gives, from a copy of the inputs, on the CPU."""
    return [tensor.cpu() for tensor in run(inputs.to(engine.device))]


def test_one_flipped_bit_is_seen() -> None:
    inputs = Inputs.draw(7, torch.float32, torch.float32)
    before = inputs.to(torch.device("cpu")).tensors()
    inputs.w.view(torch.int32)[0, 0] ^= 1
    assert differences(inputs.tensors(), before) == [len(before) - 1]


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_runs_repeat(engine: Engine, dim: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    inputs = Inputs.draw(dim, *dtypes)
    first = outputs(engine, inputs)
    assert any(not same_bits(a, b) for a, b in zip(first[-5:], inputs.tensors()[-5:], strict=True))
    for _ in range(3):
        assert differences(outputs(engine, inputs), first) == []


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_neighbours_change_nothing(
    engine: Engine, dim: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Each sample alone against all of them together."""
    inputs = Inputs.draw(dim, *dtypes)
    together = outputs(engine, inputs)
    for sample in range(len(inputs.w)):
        alone = outputs(engine, inputs.samples(slice(sample, sample + 1)))
        for i, (one, many) in enumerate(zip(alone, together, strict=True)):
            if many.shape != (1,):  # but for the count of running samples
                assert same_bits(one[0], many[sample]), f"sample {sample}, output {i}"


@pytest.mark.parametrize(
    "options",
    [{}, {"gamma": "auto", "line_search": "derivative_free", "when_full": "drop_oldest"}],
    ids=["plain", "all options"],
)
def test_a_large_batch_changes_nothing(engine: Engine, options: dict[str, Any]) -> None:
    """A batch that fills a GPU by itself is planned otherwise than one sample."""
    gain = torch.linspace(-0.9, 0.95, 9001, device=engine.device)
    z0 = torch.randn(300, 9001, device=engine.device)
    solver = dk.Broyden(max_steps=8, rtol=1e-5, history_length=4, **options)

    def results(start: Tensor) -> list[Tensor]:
        solution = solver(lambda z: torch.tanh(gain * z) + 0.5, start)
        assert solution.inverse_jacobian is not None
        assert isinstance(solution.z, Tensor)
        product = solution.inverse_jacobian.rmatvec(start)
        return [solution.z, solution.trace, solution.status, solution.steps, product]

    together = results(z0)
    for index in (slice(0, 1), slice(17, 20), slice(299, 300)):
        alone = results(z0[index])
        assert differences(alone, [tensor[index] for tensor in together]) == []


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_regimes_agree(dim: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    inputs = Inputs.draw(dim, *dtypes)
    results = {}
    for name in CUDA_ENGINES:
        with running(name) as engine:
            results[name] = outputs(engine, inputs)
    for name in CUDA_ENGINES[1:]:
        assert differences(results[name], results[CUDA_ENGINES[0]]) == [], name
