"""The solver loop on a GPU: no waiting for the device, one step late, captured, on streams."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops import backends, broyden
from deq_kernels.ops.termination import Tables
from deq_kernels.solvers.machinery import running
from python_tests.problems import Affine, Tanh

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(
        backends.cuda_backend() not in ("native", "triton"),
        reason="the PyTorch reference waits for the device",
    ),
]

SOLVERS = (dk.Broyden, dk.Anderson, dk.FixedPoint)
CAPTURED = (*SOLVERS, dk.GMRES)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
Map = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    """Make tensors on the GPU, and leave nothing running behind."""
    with torch.device("cuda"):
        yield
    torch.cuda.synchronize()


@pytest.fixture
def forbid_waiting() -> Iterator[Callable[[], None]]:
    """Return what makes every wait for the device an error from then on."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def counted(f: Map) -> tuple[Map, list[int]]:
    calls: list[int] = []

    def counting(z: Tensor) -> Tensor:
        calls.append(1)
        return f(z)

    return counting, calls


def tensors_of(solution: dk.Solution, x: Tensor) -> list[Tensor]:
    assert isinstance(solution.z, Tensor)
    tensors = [solution.z, solution.trace.nan_to_num(-1.0), solution.status, solution.steps]
    if solution.inverse_jacobian is not None:
        tensors += [solution.inverse_jacobian.matvec(x), solution.inverse_jacobian.rank]
    return tensors


def assert_same_bits(one: dk.Solution, other: dk.Solution, x: Tensor) -> None:
    for a, b in zip(tensors_of(one, x), tensors_of(other, x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_gpu_solves_as_the_cpu_does(solver: type[dk.Solver]) -> None:
    """Same steps and statuses, one evaluation more."""
    problem = Affine.random(4, 20, 0.6)
    on_cpu = Affine(problem.weight.cpu(), problem.bias.cpu())
    solve = solver(max_steps=100, rtol=1e-9)
    f, calls = counted(problem)
    solution = solve(f, torch.zeros(4, 20, dtype=torch.float64))
    expected = solve(on_cpu, torch.zeros(4, 20, dtype=torch.float64, device="cpu"))
    assert torch.equal(solution.status.cpu(), expected.status)
    assert torch.equal(solution.steps.cpu(), expected.steps)
    assert len(calls) == int(solution.steps.max()) + 1
    torch.testing.assert_close(solution.z.cpu(), expected.z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        solution.trace.cpu(), expected.trace, rtol=1e-3, atol=1e-10, equal_nan=True
    )


@pytest.mark.parametrize("max_steps", [1, 2, 3, 7])
def test_max_steps_is_never_exceeded(max_steps: int) -> None:
    for cuda_graph in (False, True):
        f, calls = counted(lambda z: 0.5 * z + 1.0)
        solver = dk.FixedPoint(max_steps=max_steps, rtol=0.0, cuda_graph=cuda_graph)
        solution = solver(f, torch.zeros(2, 3))
        assert (solution.steps == max_steps).all()
        assert len(calls) == (min(max_steps, 2) if cuda_graph else max_steps)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_solve_never_waits_for_the_device(
    solver: type[dk.Solver], cuda_graph: bool, forbid_waiting: Callable[[], None]
) -> None:
    problem = Tanh.random(3, 40, 0.6, torch.float32)
    z0 = torch.zeros(3, 40)
    solve = solver(max_steps=40, rtol=1e-4, cuda_graph=cuda_graph)
    solve(problem, z0)
    forbid_waiting()
    solution = solve(problem, z0)
    torch.cuda.set_sync_debug_mode("default")
    assert solution.converged.all()


@pytest.mark.parametrize(
    "gradient",
    [
        dk.JacobianFree(),
        dk.Shine(fallback=1.3),
        dk.Neumann(steps=4),
        dk.Unrolled(steps=3),
        dk.Implicit(),
    ],
    ids=lambda gradient: type(gradient).__name__,
)
def test_a_training_step_never_waits_for_the_device(
    gradient: dk.Gradient, forbid_waiting: Callable[[], None]
) -> None:
    linear = torch.nn.Linear(16, 16)
    with torch.no_grad():
        linear.weight.mul_(0.3)
    layer = dk.DEQ(
        lambda z, x: torch.tanh(linear(z) + x),
        solver=dk.Broyden(max_steps=12, rtol=1e-4),
        gradient=gradient,
        warm_start=True,
    )
    z0, x = torch.zeros(8, 16), torch.randn(8, 16)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)

    def train() -> None:
        optimizer.zero_grad()
        layer(z0, x).square().mean().backward()
        optimizer.step()

    train()
    forbid_waiting()
    train()
    torch.cuda.set_sync_debug_mode("default")
    assert linear.weight.grad is not None
    assert linear.weight.grad.isfinite().all()


def test_a_step_of_a_late_count_is_read_while_the_next_one_runs() -> None:
    """The host is at most one step ahead, and the slots serves the next solve again."""
    for _ in range(3):
        dk.FixedPoint(max_steps=30, rtol=1e-3)(lambda z: 0.5 * z + 1.0, torch.zeros(2, 3))
    (idle,) = [boxes for device, boxes in running._idle.items() if device.index == 0]
    before = len(idle)
    assert before >= 1
    with pytest.raises(ZeroDivisionError):
        dk.FixedPoint()(lambda z: z / (1 // 0), torch.zeros(2, 3))
    assert len(idle) == before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", CAPTURED)
@pytest.mark.parametrize("dim", [40, 5000])
def test_replays_give_the_bits_of_eager_steps(
    solver: type[dk.Solver], dtype: torch.dtype, dim: int
) -> None:
    gain = torch.linspace(-0.9, 0.9, dim).to(dtype)
    z0 = torch.randn(3, dim).to(dtype)

    def f(z: Tensor) -> Tensor:
        return torch.tanh(gain * z + 0.5).roll(1, dims=1)

    for options in ({"rtol": 0.0, "max_steps": 9}, {"rtol": 1e-2, "max_steps": 60}):
        eager = solver(**options)(f, z0)
        captured = solver(**options, cuda_graph=True)(f, z0)
        assert_same_bits(captured, eager, z0)


def test_a_captured_solve_of_a_tuple_under_autocast() -> None:
    weight = 0.5 * torch.eye(16)

    def f(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = state
        return (b.flatten(1) @ weight + 1.0).view(a.shape), (a.flatten(1) @ weight).cos()

    z0 = (torch.zeros(3, 4, 4), torch.zeros(3, 16))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        eager = dk.Broyden(max_steps=12, rtol=0.0)(f, z0)
        captured = dk.Broyden(max_steps=12, rtol=0.0, cuda_graph=True)(f, z0)
    for one, other in zip(eager.z, captured.z, strict=True):
        assert torch.equal(one, other)


def test_a_captured_layer_trains() -> None:
    def gradient(*, cuda_graph: bool) -> Tensor:
        weight = (0.3 * torch.eye(32)).requires_grad_()
        solver = dk.Broyden(max_steps=15, rtol=1e-5, cuda_graph=cuda_graph)
        layer = dk.DEQ(lambda z, x: torch.tanh(z @ weight + x), solver=solver, gradient=dk.Shine())
        for _ in range(3):
            layer(torch.zeros(8, 32), torch.ones(8, 32)).sum().backward()
        assert weight.grad is not None
        return weight.grad

    assert torch.equal(gradient(cuda_graph=True), gradient(cuda_graph=False))


def test_captured_random_numbers_are_fresh_in_every_replay() -> None:
    solver = dk.FixedPoint(max_steps=8, rtol=0.0, stall_steps=None, cuda_graph=True)
    solution = solver(lambda z: torch.rand_like(z), torch.zeros(1, 100))
    trace = solution.trace[0].tolist()
    assert len(set(trace)) == len(trace)


@pytest.mark.parametrize("solver", CAPTURED)
def test_captured_solves_do_not_gather_memory(solver: type[dk.Solver]) -> None:
    solve = solver(max_steps=6, rtol=0.0, cuda_graph=True)
    z0 = torch.randn(4, 300_000)

    def f(z: Tensor) -> Tensor:
        return torch.tanh(0.5 * z + 1.0)

    for _ in range(2):
        solve(f, z0)
    reserved = torch.cuda.memory_reserved()
    for _ in range(5):
        solve(f, z0)
    assert torch.cuda.memory_reserved() == reserved
    dk.empty_cache()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < reserved
    solve(f, z0)


def test_an_f_that_waits_is_refused_and_leaves_nothing_behind() -> None:
    z0 = torch.zeros(2, 30)
    solver = dk.Broyden(max_steps=8, rtol=1e-4, cuda_graph=True)

    def waits(z: Tensor) -> Tensor:
        return z * 0.5 if z.sum().item() > -1.0 else z

    for _ in range(2):
        with pytest.raises(RuntimeError, match="f must not wait for the device") as caught:
            solver(waits, z0)
        assert caught.value.__cause__ is not None
        assert not torch.cuda.is_current_stream_capturing()
        # Memory, random numbers, pinned memory and captures work as before.
        assert torch.rand(1000).std() > 0.2
        assert torch.ones(10, device="cpu").pin_memory().sum() == 10
        eager = dk.Broyden(max_steps=8, rtol=1e-4)(lambda z: 0.5 * z.cos(), z0)
        assert_same_bits(solver(lambda z: 0.5 * z.cos(), z0), eager, z0)
        assert dk.Broyden(max_steps=8, rtol=1e-4)(waits, z0).converged.all()


def test_errors_of_f_pass_through_a_capture() -> None:
    calls = []

    def breaks_late(z: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("the second evaluation broke")
        return 0.5 * z + 1.0

    solver = dk.FixedPoint(max_steps=8, cuda_graph=True)
    with pytest.raises(ValueError, match="the second evaluation broke"):
        solver(breaks_late, torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="changed z in place"):
        solver(lambda z: z.mul_(0.5), torch.zeros(2, 3))
    assert solver(lambda z: 0.5 * z + 1.0, torch.zeros(2, 3)).steps.min() == 8


def test_a_solve_inside_a_capture_is_refused() -> None:
    z0 = torch.zeros(2, 3)
    solver = dk.FixedPoint(max_steps=3)
    solver(lambda z: 0.5 * z + 1.0, z0)
    outer = dk.FixedPoint(max_steps=5, cuda_graph=True)
    with pytest.raises(RuntimeError, match=r"(?s)could not be captured: A solve reads on the host"):
        outer(lambda z: solver(lambda y: 0.5 * y + z, z).z, z0)
    assert outer(lambda z: 0.5 * z + 1.0, z0).steps.max() == 5


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_work_of_other_streams_is_ordered_with_the_solve(cuda_graph: bool) -> None:
    """z0 is written late on a stream of the caller's; the result is read there at once."""
    problem = Tanh.random(3, 500, 0.6, torch.float32)
    values = torch.randn(3, 500)
    solver = dk.Broyden(max_steps=10, rtol=0.0, cuda_graph=cuda_graph)
    expected = solver(problem, values)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    for _ in range(3):
        with torch.cuda.stream(stream):
            z0 = torch.full((3, 500), torch.nan)
            torch.cuda._sleep(50_000_000)
            z0.copy_(values)
            solution = solver(problem, z0)
            copied = solution.z.clone()
        stream.synchronize()
        assert torch.equal(copied, expected.z)
        assert torch.equal(solution.status, expected.status)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_threads_solve_side_by_side(cuda_graph: bool) -> None:
    problems = [Tanh.random(2, 200, 0.6, torch.float32) for _ in range(4)]
    z0 = torch.zeros(2, 200)
    solver = dk.Broyden(max_steps=15, rtol=1e-5, cuda_graph=cuda_graph)
    expected = [solver(problem, z0) for problem in problems]
    torch.cuda.synchronize()
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream), torch.device("cuda"):
                for _ in range(20):
                    solution = solver(problems[index], z0)
                    stream.synchronize()
                    assert torch.equal(solution.z, expected[index].z)
                    assert torch.equal(solution.steps, expected[index].steps)
        except BaseException as error:  # a thread's own failure would only be printed
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_the_state_decides_on_the_device(cuda_graph: bool) -> None:
    problem = Tanh.random(3, 40, 0.6)
    there = Tanh(problem.weight.to("cuda:1"), problem.bias.to("cuda:1"))
    solver = dk.Broyden(max_steps=20, rtol=1e-6, cuda_graph=cuda_graph)
    z0 = torch.zeros(3, 40, dtype=torch.float64, device="cuda:1")
    assert torch.cuda.current_device() == 0
    solution = solver(there, z0)
    assert torch.cuda.current_device() == 0
    assert solution.converged.all()
    assert solution.z.device == z0.device


@pytest.mark.parametrize("dim", [30, 9000])
def test_steps_are_captured_into_a_graph_of_the_callers(dim: int) -> None:
    """The op alone: no wait, no allocation, and all it reads and writes is in its arguments."""
    gain = torch.linspace(-0.9, 0.9, dim)
    z0 = torch.randn(3, dim)

    def fresh() -> tuple[Tensor, Tensor, Tables, Callable[[Tensor], None]]:
        z, best = z0.clone(), torch.empty_like(z0)
        tables = Tables.new(3, 10, z.device)
        history = broyden.History.new(z, 9, None)
        options = {"rtol": 1e-4, "atol": 0.0, "damping": 1.0, "gamma": 1.0, "stall_steps": 0}
        step = broyden.bind_step(
            z, best, history, tables, **options, divergence_factor=1e6, finish_inverse=True
        )
        return z, best, tables, step

    z, best, tables, step = fresh()
    for _ in range(6):
        step(gain * z + 1.0)
    expected = [tensor.clone() for tensor in (z, best, tables.record, tables.counters)]

    z, best, tables, step = fresh()
    step(gain * z + 1.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        f_z = gain * z + 1.0
        step(f_z)
    for _ in range(5):
        graph.replay()
    for now, before in zip((z, best, tables.record, tables.counters), expected, strict=True):
        assert torch.equal(now.nan_to_num(-1.0), before.nan_to_num(-1.0))
