"""Every op on a stream of the caller's, inside a CUDA graph, and on a second device."""

from __future__ import annotations

import pytest
import torch

from python_tests.gpu.engines import Engine
from python_tests.gpu.every_op import Inputs, run
from python_tests.gpu.test_same_bits import differences

DTYPES = ((torch.float32, torch.float32), (torch.float32, torch.bfloat16))
DIMS = (7, 40_003)
# Some hundredths of a second: long enough for a kernel on another stream to come first.
SLEEP_CYCLES = 50_000_000


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_ops_follow_the_current_stream(
    gpu_engine: Engine, dim: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """The inputs arrive late on a side stream: ops on any other stream would not see them."""
    late = Inputs.draw(dim, *dtypes).to(gpu_engine.device)
    expected = run(late.to(gpu_engine.device))
    early = Inputs.draw(dim, *dtypes).to(gpu_engine.device)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP_CYCLES)
        early.copy_(late)
        outputs = [tensor.clone() for tensor in run(early)]
    stream.synchronize()
    assert differences(outputs, expected) == []


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_a_graph_replays_every_op(
    gpu_engine: Engine, dim: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    start = Inputs.draw(dim, *dtypes).to(gpu_engine.device)
    expected = [tensor.clone() for tensor in run(start.to(gpu_engine.device))]
    work = start.to(gpu_engine.device)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # loads and compiles what a capture must find ready
        run(work)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work.copy_(start)
        outputs = run(work)
    for _ in range(2):
        for tensor in outputs:
            tensor.fill_(1)
        graph.replay()
        torch.cuda.synchronize()
        assert differences(outputs, expected) == []


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_ops_run_where_their_tensors_are(gpu_engine: Engine) -> None:
    """The current device is another one, and stays current."""
    inputs = Inputs.draw(2049, torch.float32, torch.float32)
    expected = [tensor.cpu() for tensor in run(inputs.to(torch.device("cuda", 0)))]
    with torch.cuda.device(0):
        outputs = run(inputs.to(torch.device("cuda", 1)))
        assert torch.cuda.current_device() == 0
    assert {tensor.device.index for tensor in outputs} == {1}
    assert differences([tensor.cpu() for tensor in outputs], expected) == []
