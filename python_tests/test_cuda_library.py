"""The built CUDA library: what it holds, what its kernels take, and where it loads.

Nothing here needs a GPU.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from deq_kernels import _native

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = _native.PACKAGE_DIR / _native.CUDA_LIBRARY
CUDA_PYTHON = os.environ.get("DEQ_KERNELS_TEST_CUDA_TORCH")

pytestmark = pytest.mark.skipif(
    not LIBRARY.exists(),
    reason="this installation was built without the CUDA library; `deq-kernels info` says why",
)

# Two blocks of 256 threads share the 65,536 registers of a multiprocessor.
MOST_REGISTERS = 128
# Of PTX: a product or sum whose rounding is left open, so that the assembler may contract it.
CONTRACTIBLE = re.compile(r"\b(?:mul|add|sub)(?:\.ftz)?(?:\.sat)?\.f(?:32|64)\b")
# What any torch from 2.11 on, the CUDA runtime and the system offer a library.
STABLE_SYMBOL = re.compile(
    r"(aoti_torch|torch)_\w+"
    r"|_*cuda\w+(@libcudart\.so\.\d+)?"
    r"|\w+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+"
)


@dataclass(frozen=True)
class Kernel:
    """A kernel's needs, as the assembler wrote them down for one compute capability."""

    arch: str
    name: str
    registers: int
    stack: int
    local: int

    @property
    def dtypes(self) -> set[str]:
        """The storage types among its template arguments."""
        arguments = self.name.partition("<")[2]
        return set(re.findall(r"\b(?:double|float|deq::float16|deq::bfloat16)\b", arguments))


def _output(*command: str | Path, stdin: str | None = None) -> str:
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        input=stdin,
        env={**os.environ, "LC_ALL": "C"},
    )
    return done.stdout


def _cuobjdump(option: str) -> str:
    """Return what cuobjdump, a requirement of the tests, says about the library."""
    files = importlib.metadata.files("nvidia-cuda-cuobjdump") or []
    program = next(Path(str(path.locate())) for path in files if path.name == "cuobjdump")
    return _output(program, option, LIBRARY)


def _demangled(names: list[str]) -> list[str]:
    return _output("c++filt", stdin="\n".join(names)).splitlines()


def _parse_kernels(usage: str) -> list[Kernel]:
    """Read the output of `cuobjdump -res-usage`."""
    rows: list[tuple[str, str, dict[str, int]]] = []
    arch = name = ""
    for line in usage.splitlines():
        if line.startswith("arch = sm_"):
            arch = line.removeprefix("arch = sm_")
        elif line.startswith(" Function "):
            name = line.removeprefix(" Function ").removesuffix(":")
        elif line.startswith("  REG:"):
            needs = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            rows.append((arch, name, needs))
    signatures = _demangled([name for _, name, _ in rows])
    unnamed = "(anonymous namespace)::"
    names = [signature.replace(unnamed, "").partition("(")[0] for signature in signatures]
    return [
        Kernel(arch, name, needs["REG"], needs["STACK"], needs["LOCAL"])
        for (arch, _, needs), name in zip(rows, names, strict=True)
    ]


@functools.cache
def _kernels() -> tuple[Kernel, ...]:
    return tuple(_parse_kernels(_cuobjdump("-res-usage")))


def _architectures() -> list[str]:
    """Return what the library was built for, e.g. 90 or 120+PTX."""
    from deq_kernels._build import build_facts

    archs = build_facts()["cuda_archs"]
    assert archs is not None
    return archs.split(",")


def _spilled(kernels: tuple[Kernel, ...]) -> list[str]:
    """Describe the kernels that keep in memory what belongs in registers, float64 apart."""
    return [
        f"sm_{kernel.arch} {kernel.name}: {kernel.registers} registers, "
        f"{kernel.stack} bytes of stack, {kernel.local} bytes of local memory"
        for kernel in kernels
        if "double" not in kernel.dtypes and (kernel.stack or kernel.local)
    ]


def test_machine_code_is_that_asked_for() -> None:
    asked = _architectures()
    code = set(re.findall(r"\.sm_(\w+)\.cubin", _cuobjdump("-lelf")))
    assert code == {arch.removesuffix("+PTX") for arch in asked}
    ptx = set(re.findall(r"\.sm_(\w+)\.ptx", _cuobjdump("-lptx")))
    assert ptx == {arch.removesuffix("+PTX") for arch in asked if arch.endswith("+PTX")}


def test_every_architecture_has_every_kernel() -> None:
    archs = {arch.removesuffix("+PTX") for arch in _architectures()}
    names = {arch: {kernel.name for kernel in _kernels() if kernel.arch == arch} for arch in archs}
    first, *others = names.values()
    assert all(other == first for other in others)
    held = set().union(*(kernel.dtypes for kernel in _kernels()))
    assert held == {"double", "float", "deq::float16", "deq::bfloat16"}


def test_no_kernel_spills() -> None:
    spilled = _spilled(_kernels())
    assert not spilled, "\n".join(spilled)


def test_two_blocks_fit_on_a_multiprocessor() -> None:
    large = [
        f"sm_{kernel.arch} {kernel.name}: {kernel.registers} registers"
        for kernel in _kernels()
        if kernel.registers > MOST_REGISTERS
    ]
    assert not large, "\n".join(large)


def test_multiply_adds_are_contracted_where_the_source_says_so() -> None:
    """Left to the compiler, a kernel may round otherwise than another with the same body."""
    if not any(arch.endswith("+PTX") for arch in _architectures()):
        pytest.skip("the library holds no PTX")
    ptx = _cuobjdump("-ptx")
    assert "fma.rn.f32" in ptx
    assert set(CONTRACTIBLE.findall(ptx)) == set()


def test_contractible_instructions_are_told_from_others() -> None:
    kept = "mul.rn.f32 add.rn.f64 sub.rn.ftz.f32 fma.rn.f64 add.rz.f32 mul.wide.u32 add.s64"
    assert CONTRACTIBLE.findall(kept) == []
    left_open = ["mul.f32", "add.f64", "sub.ftz.f32"]
    assert CONTRACTIBLE.findall("\t".join(left_open)) == left_open


def test_the_gate_reads_what_the_assembler_writes() -> None:
    """A spill is seen where the storage types are gated, and in no other kernel."""
    row = "  REG:{} STACK:{} SHARED:0 LOCAL:{} CONSTANT[0]:480 TEXTURE:0 SURFACE:0 SAMPLER:0"
    usage = [
        "arch = sm_80",
        "Resource usage:",
        " Common:",
        "  GLOBAL:196 CONSTANT[4]:264",
        " Function _ZN3deq12apply_kernelINS_14BroydenProductINS_8bfloat16EfEEEEvT_Pd:",
        row.format(72, 0, 0),
        " Function _ZN3deq12apply_kernelINS_14BroydenProductIdfEEEEvT_Pd:",
        row.format(128, 16, 0),
        "arch = sm_120",
        " Function _ZN3deq12apply_kernelINS_14BroydenProductINS_8bfloat16EfEEEEvT_Pd:",
        row.format(72, 24, 0),
        " Function _ZN3deq12apply_kernelINS_14BroydenProductIffEEEEvT_Pd:",
        row.format(72, 0, 8),
    ]
    kernels = _parse_kernels("\n".join(usage))
    assert [kernel.arch for kernel in kernels] == ["80", "80", "120", "120"]
    assert [kernel.registers for kernel in kernels] == [72, 128, 72, 72]
    assert kernels[0].dtypes == {"deq::bfloat16", "float"}
    assert kernels[1].dtypes == {"double", "float"}
    bfloat16, float32 = _spilled(tuple(kernels))
    assert bfloat16.startswith("sm_120 void deq::apply_kernel<deq::BroydenProduct<deq::bfloat16, f")
    assert bfloat16.endswith("72 registers, 24 bytes of stack, 0 bytes of local memory")
    assert float32.endswith("72 registers, 0 bytes of stack, 8 bytes of local memory")


def test_library_needs_the_stable_abi_only() -> None:
    """So that one binary runs on every torch from 2.11 on, and none of it hides the host's."""
    symbols = [line.split() for line in _output("nm", "-D", LIBRARY).splitlines()]
    needed = {name for *_, kind, name in symbols if kind == "U"}
    assert "aoti_torch_get_current_cuda_stream" in needed
    assert {name for name in needed if not STABLE_SYMBOL.fullmatch(name)} == set()
    offered = {name for *_, kind, name in symbols if kind == "T"}
    assert "deq_kernels_force_regime" in offered
    assert {name for name in offered if not name.startswith("deq_kernels_")} == set()


def test_library_finds_torch_by_name_alone() -> None:
    """libtorch.so brings in libtorch_cuda.so where it exists; no folder of the builder is kept."""
    entries = _output("readelf", "-dW", LIBRARY)
    assert "[libtorch.so]" in entries
    assert "PATH" not in entries
    assert str(ROOT) not in entries


@pytest.mark.skipif(
    CUDA_PYTHON is None,
    reason="DEQ_KERNELS_TEST_CUDA_TORCH does not name a Python with a CUDA build of torch",
)
def test_library_loads_on_a_cuda_build_of_torch() -> None:
    """It holds a kernel for every op that has one on the CPU, but for the pool of CPU memory."""
    assert CUDA_PYTHON is not None
    program = """
import ctypes, json, sys
import torch
import deq_kernels
assert torch.version.cuda, "DEQ_KERNELS_TEST_CUDA_TORCH must name a Python whose torch has CUDA"
torch.ops.load_library(sys.argv[1])
names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("deq_kernels::")]
def ops(key):
    held = (n for n in names if torch._C._dispatch_has_kernel_for_dispatch_key(n, key))
    return sorted(held)
force_regime = ctypes.CDLL(sys.argv[1]).deq_kernels_force_regime
answers = [force_regime(name) for name in (b"block", b"cluster", b"grid", b"", b"fast")]
print(json.dumps({"cpu": ops("CPU"), "cuda": ops("CUDA"), "answers": answers}))
"""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DEQ_KERNELS_")}
    done = subprocess.run(
        [CUDA_PYTHON, "-W", "error", "-c", program, LIBRARY],
        check=False,
        capture_output=True,
        text=True,
        env={**kept, "PYTHONPATH": str(ROOT), "DEQ_KERNELS_BACKEND": "native"},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["cpu"]) > 1
    # The memory of histories on a GPU is torch's own.
    assert set(report["cuda"]) == set(report["cpu"]) - {"deq_kernels::history_memory"}
    assert report["answers"] == [0, 0, 0, 0, -1]
