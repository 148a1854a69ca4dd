"""A program that solves affine problems with jaxopt, as its standard input asks for.

Each request is a line of JSON, followed by the arrays that it names, as bytes:

    {"do": "prepare", "dtype": ..., "batch": ..., "dim": ..., "steps": ...}   slopes, offsets, z0
    {"do": "solve", "repeats": ...}
    {"do": "weigh"}

and is answered by a line of JSON and, to the first, by the iterates. It imports nothing of this
package, nor torch, so that only JAX works in its process.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def make_solve(slopes: Any, offsets: Any, steps: int) -> Callable[[Any], Any]:
    """z0 [batch, dim] to the best iterates, jitted and mapped over the batch.

    ``jaxopt.Broyden`` returns its last iterate; its steps are therefore taken one by one, within
    the same compiled loop, and the best iterate is kept beside them.
    """
    import jax
    import jaxopt

    def residual(z: Any) -> Any:
        return slopes * z + offsets - z

    solver = jaxopt.Broyden(
        residual, maxiter=steps, tol=0.0, stepsize=1.0, gamma=-1.0, history_size=steps
    )

    def one(z0: Any) -> Any:
        state = solver.init_state(z0)
        norm = jax.numpy.linalg.norm

        def advance(_: Any, carry: Any) -> Any:
            z, state, best, lowest = carry
            z, state = solver.update(z, state)
            error = norm(state.value)
            better = error < lowest
            state = jax.tree_util.tree_map(
                lambda new, old: jax.numpy.asarray(new, old.dtype), state, template
            )
            return z, state, jax.numpy.where(better, z, best), jax.numpy.minimum(error, lowest)

        template = jax.tree_util.tree_map(jax.numpy.asarray, state)
        first = norm(template.value)
        _, _, best, _ = jax.lax.fori_loop(0, steps, advance, (z0, template, z0, first))
        return best

    return jax.jit(jax.vmap(one))


class Worker:
    """Answers requests, one after the other."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self._requests, self._answers = requests, answers
        self._solve: Callable[[], Any] | None = None

    def run(self) -> None:
        """Answer until the input ends."""
        for line in iter(self._requests.readline, b""):
            request = json.loads(line)
            try:
                answer, array = self._answer(request)
            except Exception as error:  # the report names whatever JAX raises
                answer, array = {"error": f"{type(error).__name__}: {error}"}, None
            self._answers.write(json.dumps(answer).encode() + b"\n")
            if array is not None:
                self._answers.write(array.tobytes())
            self._answers.flush()

    def _answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        if request["do"] == "prepare":
            return self._prepare(request)
        assert self._solve is not None
        if request["do"] == "weigh":
            return {"bytes": self._peak_growth()}, None
        start = time.perf_counter_ns()
        for _ in range(request["repeats"]):
            self._solve()
        seconds = (time.perf_counter_ns() - start) * 1e-9 / request["repeats"]
        return {"seconds": seconds}, None

    def _prepare(self, request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        dtype, dim, batch = np.dtype(request["dtype"]), request["dim"], request["batch"]
        slopes, offsets, z0 = (
            np.frombuffer(self._requests.read(count * dtype.itemsize), dtype)
            for count in (dim, dim, batch * dim)
        )
        import jax

        compiled = make_solve(
            jax.numpy.asarray(slopes), jax.numpy.asarray(offsets), request["steps"]
        )
        start = jax.numpy.asarray(z0.reshape(batch, dim))
        self._solve = lambda: compiled(start).block_until_ready()
        z = np.asarray(self._solve())
        if z.dtype != dtype:
            raise TypeError(f"JAX computed in {z.dtype} instead of {dtype}")
        return {"evaluations": request["steps"] + 1}, z

    def _peak_growth(self) -> int:
        assert self._solve is not None
        before = _status_bytes("VmRSS")
        _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
        self._solve()
        return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == field:
            return int(value.removesuffix("kB")) * 1024
    raise RuntimeError(f"{_STATUS} must list {field}, but does not; memory needs a Linux kernel")


if __name__ == "__main__":
    Worker(sys.stdin.buffer, sys.stdout.buffer).run()
