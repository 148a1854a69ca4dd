"""Hostile calls of a CPU library that sanitizers watch: `make sanitize` runs it.

    python -m python_tests.hostile.sanitized LIBRARY [FIRST] [COUNT]

Makes the calls of COUNT seeds from FIRST on in a process of their own, which a sanitizer ends at
its first finding, and names the call that was made then.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import deq_kernels as dk
from deq_kernels.ops import OPS
from python_tests.hostile.calls import check

COUNT = 5000


def _runtimes(library: str) -> str:
    """What must be loaded before Python: the sanitizer, and the library that throws exceptions."""
    needed = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    found = [re.search(rf"{name}\.so\S* => (\S+)", needed) for name in ("libasan", r"libstdc\+\+")]
    paths = [match.group(1) for match in found if match is not None]
    if len(paths) != len(found):
        raise SystemExit(f"{library} must be built with -fsanitize=address; it needs:\n{needed}")
    return " ".join(paths)


def watch(library: str, first: int, count: int) -> int:
    """Make the calls in a watched process; returns its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "seed"
        environment = {
            **os.environ,
            "LD_PRELOAD": _runtimes(library),
            "ASAN_OPTIONS": "detect_leaks=0,allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            # The library in question comes instead of the installed one.
            "DEQ_KERNELS_BACKEND": "reference",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "python_tests.hostile.sanitized", "--calls"]
        arguments = [library, str(first), str(count), str(log)]
        status = subprocess.run(command + arguments, env=environment, check=False).returncode
        if status != 0:
            seed = log.read_text(encoding="utf-8") if log.exists() else "none"
            print(
                f"The call of seed {seed} failed. To see it again: python -m "
                f"python_tests.hostile.sanitized {library} {seed} 1",
                file=sys.stderr,
            )
        return status


def make_calls(library: str, first: int, count: int, log: Path) -> None:
    """Make the calls, noting the seed of each before it is made."""
    torch.ops.load_library(library)
    missing = [name for name, op in OPS.items() if not op.holds_kernel("CPU")]
    if missing:
        raise SystemExit(f"{library} must hold every op, but does not hold {', '.join(missing)}")
    accepted = 0
    with dk.use_backend("native"), log.open("w", encoding="utf-8") as note:
        for seed in range(first, first + count):
            note.seek(0)
            note.write(str(seed))
            note.flush()
            accepted += check(seed, guarded=False, large=True)
    print(f"{count} hostile calls: {accepted} accepted, {count - accepted} refused")


def main() -> None:
    """Watch, or be watched."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--calls"]:
        library, first, count, log = arguments[1:]
        make_calls(library, int(first), int(count), Path(log))
        return
    library, *numbers = arguments
    first = int(numbers[0]) if numbers else 0
    raise SystemExit(watch(library, first, int(numbers[1]) if len(numbers) > 1 else COUNT))


if __name__ == "__main__":
    main()
