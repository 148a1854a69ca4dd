"""The options of the command."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .environment import WORK, CannotBeginError

_DESCRIPTION = """\
Builds this checkout on a machine with an NVIDIA GPU, runs the tests that need one, checks the
kernels with compute-sanitizer and runs the benchmarks. Needs the CUDA toolkit, cmake, ninja and a
Python with a CUDA build of torch, setuptools 77, pybind11, pytest and hypothesis; no network. Run
it from the root of the checkout. Writes nothing outside the checkout (build/gpu, and what an
editable install leaves) and OUT.
"""
_EPILOG = """\
Stages, each with a time limit; a stage that fails or runs out of time does not stop the next:
  facts           device, driver, toolkit, versions                        facts.txt
  build           pip install -e, for the architecture of this GPU alone   build.txt
                  (DEQ_KERNELS_CUDA_ARCHS chooses others)
  tests           every op, dtype and regime against float64               tests.txt
  memcheck, racecheck, synccheck   compute-sanitizer on small shapes       sanitizer.txt
  benchmark       Broyden: bench.json, bench.png (where matplotlib is), table    bench.txt
  cells           structured cells: cells.json, cells.png, table           cells.txt
  train           training steps: train.json, train.png, table             train.txt
  and summary.json: what passed, failed and was skipped, with durations and the measured targets

The exit status is 0 if everything that says something about correctness passed, 1 if not, and 2
if the command could not begin. A benchmark after a failed test is marked so. Where time runs short,
the later stages are cut first: what they had measured until then is kept.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """One run on a machine.

    Attributes:
        out: folder of the results.
        device: "cuda", or "cpu" for a rehearsal.
        quick: the smallest selection of everything.
        build: build the package, in an environment of its own.
        wheels: folder of the wheels to install beside it.
        commit: that is measured, where the checkout has no git history.
        python: the interpreter that has torch.
        seconds: for all stages.
    """

    out: Path
    device: str = "cuda"
    quick: bool = False
    build: bool = True
    wheels: Path | None = None
    commit: str | None = None
    python: str
    seconds: int = 570

    @property
    def run_python(self) -> str:
        """The interpreter of the environment that was built, or else the one that has torch."""
        built = WORK / "venv" / "bin" / "python"
        return str(built) if self.build and os.access(built, os.X_OK) else self.python


def parse_options(argv: Sequence[str] | None) -> Options:
    """The checked options.

    Raises:
        CannotBeginError: they ask for something that is not there.
        SystemExit: they cannot be parsed.
    """
    args = _parser().parse_args(argv)
    if (python := shutil.which(args.python)) is None:
        raise CannotBeginError(f"{args.python} is not there; name another with --python")
    wheels: Path | None = args.wheels
    if wheels is not None:
        if args.no_build:
            raise CannotBeginError("--wheels are installed while building; leave out --no-build")
        if not any(wheels.glob("*.whl")):
            raise CannotBeginError(f"there is no wheel in {wheels}")
        wheels = wheels.resolve()
    return Options(
        out=args.out.resolve(),
        device="cpu" if args.rehearse else "cuda",
        quick=args.quick or args.rehearse,
        build=not args.no_build,
        wheels=wheels,
        commit=args.commit,
        # Not resolved: the link that a virtual environment has for its interpreter says which
        # environment it is.
        python=str(Path(python).absolute()),
        seconds=args.seconds,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        *("out",),
        metavar="OUT",
        type=Path,
        help="folder for the results, created if needed; what an earlier run left is replaced",
    )
    add(
        "--quick",
        action="store_true",
        help="the smallest selection of tests, no sanitizer, few benchmark cases",
    )
    add(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="install the wheels in DIR beside the package: torchdeq, or what PYTHON lacks",
    )
    add("--commit", metavar="HASH", help="what is measured, where the checkout has no git history")
    add(
        "--python",
        default=sys.executable,
        metavar="PYTHON",
        help="the interpreter that has torch (default: this one)",
    )
    add(
        "--seconds",
        type=_seconds,
        default=570,
        metavar="N",
        help="end within N seconds (default: %(default)s)",
    )
    add(
        "--no-build",
        action="store_true",
        help="take the package as PYTHON has it, or as this checkout was built before",
    )
    add(
        "--rehearse",
        action="store_true",
        help="walk through all stages on the CPU, with the smallest selection: exercises this "
        "command and proves nothing about a GPU",
    )
    return parser


def _seconds(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"--seconds takes a whole number, but got {text}")
    return int(text)
