"""What only the interpreter that has torch can do; run there, as `-m benchmarks.gpu.interpreter`.

`capability` prints the compute capability of the GPU, `versions` those of the packages, `library
DEVICE` loads the library and prints its launch plans, and `overlay FOLDER` makes an environment on
top of this one.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

_PACKAGES = (
    *("torch", "triton", "numpy", "setuptools", "pip", "pybind11", "cmake", "ninja"),
    *("pytest", "pytest-xdist", "hypothesis", "matplotlib", "torchdeq"),
)


def print_capability() -> None:
    """Such as 90.

    Raises:
        SystemExit: there is no GPU that torch can use.
    """
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no GPU")
    print("{}{}".format(*torch.cuda.get_device_capability()))


def print_versions() -> None:
    """One line per package."""
    print("python", platform.python_version())
    for name in _PACKAGES:
        try:
            print(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            print(name, "is not installed")


def load_library(device: str) -> None:
    """Print what was built, and how the cases that are measured would be launched.

    Raises:
        SystemExit: the library for the device does not load.
    """
    import deq_kernels
    from benchmarks.broyden.cases import GPU_CASES
    from benchmarks.cells.suite import CellSuite
    from deq_kernels import _launches

    info = deq_kernels.backend_info()
    print(info)
    if info.build is not None:
        print("plans of the last step of each case on this GPU, or on an H200 where there is none:")
        for case in GPU_CASES:
            plan = _launches.plan_launch(batch=case.batch, dim=case.dim, rank=case.steps)
            print(f"  {case.name} {plan}")
        print("and of structured cells:")
        for cell in CellSuite().cases("cuda"):
            cell_plan = _launches.plan_cells(
                samples=cell.graphs, nodes=cell.nodes, dim=cell.features
            )
            print(f"  {cell.name} {cell_plan}")
    if absent := getattr(info, f"{device}_library_absent"):
        raise SystemExit(f"there is no {device} library: {absent}")


def make_overlay(folder: str) -> None:
    """Make an environment that sees the packages of this interpreter.

    This one may be a virtual environment itself: with `system_site_packages` the packages of the
    interpreter underneath it would be seen instead.
    """
    venv.EnvBuilder(clear=True, symlinks=True).create(folder)
    packages = sysconfig.get_path("purelib", "posix_prefix", vars={"base": folder})
    lines = [
        f"import site; site.addsitedir({path!r})\n"
        for path in sys.path
        if path.rstrip("/").endswith(("site-packages", "dist-packages"))
    ]
    (Path(packages) / "parent.pth").write_text("".join(lines), encoding="utf-8")


_TASKS: dict[str, Callable[..., None]] = {
    "capability": print_capability,
    "versions": print_versions,
    "library": load_library,
    "overlay": make_overlay,
}

if __name__ == "__main__":
    _TASKS[sys.argv[1]](*sys.argv[2:])
