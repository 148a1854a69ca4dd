"""What this installation runs on, and why anything is absent."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from deq_kernels import _native
from deq_kernels._version import __version__
from deq_kernels.ops import OPS, backends

if TYPE_CHECKING:
    from deq_kernels._build import BuildFacts

KEYS = ("CPU", "CUDA")


@dataclass(frozen=True)
class BackendInfo:
    """What this installation runs on.

    Attributes:
        version: version of deq_kernels.
        torch_version: version of the torch in use.
        torch_threads: number of threads torch (and the native kernels) use now.
        cpu_library: path of the loaded CPU library, or None.
        cpu_library_absent: why there is none, with the cure, or None.
        active_isa: instruction set that the loaded CPU library chose on this processor, or None.
        native_ops: ops that hold a CPU kernel besides the PyTorch reference.
        reference_ops: ops that run their PyTorch reference on the CPU.
        cuda_library: path of the loaded CUDA library, or None.
        cuda_library_absent: why there is none, with the cure, or None.
        cuda_device: name and compute capability of torch's current CUDA device, or None.
        cuda_backend: what serves CUDA tensors now: "native", "triton" or "reference"; None without
            a CUDA device.
        cuda_ops: ops that hold a CUDA kernel, compiled or Triton's.
        triton_version: version of the installed Triton, or None.
        triton_limits: what the ops with a Triton kernel leave to their PyTorch reference all the
            same, where Triton serves CUDA tensors.
        build: what the native code was built from and with, or None.
        build_absent: why these facts are unknown, or None.
    """

    version: str
    torch_version: str
    torch_threads: int
    cpu_library: str | None
    cpu_library_absent: str | None
    active_isa: str | None
    native_ops: tuple[str, ...]
    reference_ops: tuple[str, ...]
    cuda_library: str | None
    cuda_library_absent: str | None
    cuda_device: str | None
    cuda_backend: str | None
    cuda_ops: tuple[str, ...]
    triton_version: str | None
    triton_limits: tuple[str, ...]
    build: BuildFacts | None
    build_absent: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, fit for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows = {
            "deq_kernels": self.version,
            "torch": f"{self.torch_version}, {self.torch_threads} thread(s)",
            "CPU library": self.cpu_library or f"absent: {self.cpu_library_absent}",
        }
        if self.active_isa is not None:
            rows["active ISA"] = self.active_isa
        rows["native ops"] = ", ".join(self.native_ops) or "none"
        rows["reference ops"] = ", ".join(self.reference_ops) or "none"
        rows["CUDA library"] = self.cuda_library or f"absent: {self.cuda_library_absent}"
        if self.cuda_device is not None:
            rows["CUDA device"] = self.cuda_device
            rows["CUDA tensors"] = f"served by the backend {self.cuda_backend}"
        rows["CUDA ops"] = ", ".join(self.cuda_ops) or "none"
        if self.triton_version is None:
            rows["Triton"] = f"absent. {backends.INSTALL_TRITON}"
        else:
            rows["Triton"] = self.triton_version
            rows["Triton limits"] = "; ".join(self.triton_limits)
        if self.build is None:
            rows["build"] = f"unknown: {self.build_absent}"
        else:
            rows["build"] = (
                f"{self.build['compiler']}, {self.build['build_type']}, "
                f"ISAs {self.build['isas']}, against torch {self.build['torch_built_against']}, "
                f"runs on torch {self.build['torch_target']} and newer"
            )
            if self.build["cuda_compiler"] is not None:
                rows["CUDA build"] = (
                    f"{self.build['cuda_compiler']}, architectures {self.build['cuda_archs']}"
                )
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _cuda_device() -> str | None:
    if _native.why_no_cuda() is not None:
        return None
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{facts.name}, compute capability {facts.major}.{facts.minor}"


def backend_info() -> BackendInfo:
    """Return what this installation runs on, and why anything native is absent.

    Returns:
        A report whose `str()` is meant to be read.
    """
    cpu, cuda = _native.load_cpu(), _native.load_cuda()
    build, build_absent = _native.build_facts()
    held = {key: tuple(op for op in sorted(OPS) if OPS[op].holds_kernel(key)) for key in KEYS}
    return BackendInfo(
        version=__version__,
        torch_version=str(torch.__version__),
        torch_threads=torch.get_num_threads(),
        cpu_library=None if cpu.path is None else str(cpu.path),
        cpu_library_absent=cpu.absent,
        active_isa=_native.active_isa(),
        native_ops=held["CPU"],
        reference_ops=tuple(op for op in sorted(OPS) if op not in held["CPU"]),
        cuda_library=None if cuda.path is None else str(cuda.path),
        cuda_library_absent=cuda.absent,
        cuda_device=_cuda_device(),
        cuda_backend=backends.cuda_backend(),
        cuda_ops=held["CUDA"],
        triton_version=backends.triton_version(),
        triton_limits=backends.TRITON_LIMITS,
        build=build,
        build_absent=build_absent,
    )
