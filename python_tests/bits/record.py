"""Record the bits of everything the library computes on a CPU, for the kernels in force.

    python -m python_tests.bits.record                # all kernels that this processor has
    python -m python_tests.bits.record --print        # those in force only, to stdout

Record anew only where a change of bits is meant, and say in the commit why they changed. What was
recorded elsewhere is kept: a recording belongs to the kernels' instruction set, to torch's build,
and to the instruction set and processor that torch's own kernels run on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import torch

import deq_kernels as dk
from python_tests.bits.cells import cell_cases
from python_tests.bits.models import model_cases
from python_tests.bits.solves import gradient_cases, root_cases, solver_cases

RECORDED = Path(__file__).with_name("recorded.json")
KERNELS = ("reference", "baseline", "avx2", "avx512", "avx512_bf16")
"""The PyTorch reference, and the instruction sets of the compiled kernels."""


def kernels_in_force() -> str:
    """One of `KERNELS`."""
    if os.environ.get("DEQ_KERNELS_BACKEND") == "reference":
        return "reference"
    found = re.search(r"active ISA\s+(\w+)", str(dk.backend_info()))
    return found.group(1) if found else "reference"


def key_of(kernels: str) -> str:
    """What a recording belongs to."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{kernels}, torch {torch.__version__}, {capability}, {_processor()}"


def _processor() -> str:
    """Vendor, family and model, which torch's libraries choose their kernels by."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown processor"
    fields = ("vendor_id", "cpu family", "model")
    found = [re.search(rf"^{field}\s*: (.+)$", text, re.MULTILINE) for field in fields]
    return " ".join(match.group(1) for match in found if match) or "unknown processor"


def measure() -> dict[str, dict[str, str]]:
    """Digests of every case: case to part to digest."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dk.UnconvergedWarning)
        cases = (solver_cases, root_cases, gradient_cases, cell_cases, model_cases)
        return {name: parts for make in cases for name, parts in make()}


def measured_with(kernels: str) -> tuple[str, dict[str, dict[str, str]]]:
    """What a process of its own measures with these kernels, and those it really had."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for name in ("DEQ_KERNELS_BACKEND", "DEQ_KERNELS_CPU_ISA"):
        environment.pop(name, None)
    if kernels == "reference":
        environment["DEQ_KERNELS_BACKEND"] = "reference"
    else:
        environment["DEQ_KERNELS_CPU_ISA"] = kernels
    run = subprocess.run(
        [sys.executable, "-m", "python_tests.bits.record", "--print"],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"recording with {kernels} kernels failed:\n{run.stderr}")
    result = json.loads(run.stdout)
    return result["kernels"], result["cases"]


def main() -> None:
    """Measure, and write or print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="the kernels in force, to stdout")
    if parser.parse_args().print:
        json.dump({"kernels": kernels_in_force(), "cases": measure()}, sys.stdout)
        return
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    for kernels in KERNELS:
        try:
            had, cases = measured_with(kernels)
        except RuntimeError as error:
            print(f"{kernels}: not recorded; {str(error).splitlines()[-1]}", file=sys.stderr)
            continue
        recorded[key_of(had)] = cases
    RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
