"""What the stages find on the machine, and the environment of their commands."""

from __future__ import annotations

import os
import shutil
import subprocess

from .job import ROOT

WORK = ROOT / "build" / "gpu"
ASK = ("-m", "benchmarks.gpu.interpreter")


class CannotBeginError(Exception):
    """The command cannot begin, for the reason given."""


def find_sanitizer() -> str | None:
    """The path of compute-sanitizer, also where it is not among the programs of the shell."""
    toolkit = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    folders = (f"{toolkit}/bin", "/usr/local/cuda/compute-sanitizer")
    return shutil.which(
        "compute-sanitizer", path=os.pathsep.join((os.environ.get("PATH", os.defpath), *folders))
    )


def environment(capability: str | None) -> dict[str, str]:
    """The environment of every stage: what would be kept elsewhere is kept in `WORK`.

    Args:
        capability: of the GPU, such as "90"; the kernels are built for it alone, unless
            DEQ_KERNELS_CUDA_ARCHS chooses others. None on the CPU.
    """
    environ = dict(os.environ)
    if capability is not None:
        environ.setdefault("DEQ_KERNELS_CUDA_ARCHS", capability)
        environ["DEQ_KERNELS_CUDA"] = "on"
    cache = WORK / "cache"
    return {
        **environ,
        "TMPDIR": str(WORK / "tmp"),
        "DEQ_KERNELS_BUILD_DIR": str(WORK / "build"),
        "XDG_CACHE_HOME": str(cache),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "CUDA_CACHE_PATH": str(cache / "cuda"),
        "MPLCONFIGDIR": str(cache / "matplotlib"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "zoo"))),
    }


def find_capability(python: str) -> str:
    """The compute capability of the GPU, such as "90".

    Raises:
        CannotBeginError: there is no GPU that torch can use.
    """
    done = subprocess.run(
        [python, *ASK, "capability"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = (done.stdout if done.returncode == 0 else done.stderr).splitlines() or [""]
    if done.returncode:
        raise CannotBeginError(
            f"an NVIDIA GPU that torch can use is needed, but {python} says: {lines[-1]}; "
            "--rehearse walks through the stages on the CPU"
        )
    return lines[-1]


def has_module(python: str, name: str) -> bool:
    """Whether an interpreter finds a module."""
    program = f"from importlib.util import find_spec; raise SystemExit(find_spec({name!r}) is None)"
    return subprocess.run([python, "-c", program], capture_output=True, check=False).returncode == 0
