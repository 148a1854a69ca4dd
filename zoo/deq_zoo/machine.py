"""What a run computes with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from deq_kernels.options import check_choice, check_count, check_flag

DtypeName = Literal["float32", "float64", "bfloat16"]
DTYPES: tuple[str, ...] = get_args(DtypeName)


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """Device, number format, compilation and threads.

    Args:
        device: "cpu", "cuda" or "cuda:1".
        dtype: of parameters and states; "bfloat16" keeps the parameters in float32 and evaluates
            what torch.autocast takes for safe in bfloat16.
        compile: evaluate the cell through torch.compile.
        threads: of PyTorch on the CPU. One is as fast as two on 8x8 images, and does not wait for a
            core that something else occupies.

    Raises:
        ValueError: an option is out of its range, or the device is no name of one.
    """

    device: str = "cpu"
    dtype: DtypeName = "float32"
    compile: bool = False
    threads: int = 1

    def __post_init__(self) -> None:
        try:
            kind = torch.device(self.device).type
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"device must be cpu or cuda[:N]; got {self.device!r}.") from error
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda[:N]; got {self.device!r}.")
        check_choice("dtype", self.dtype, DTYPES)
        check_flag("compile", self.compile)
        check_count("threads", self.threads)

    @property
    def parameter_dtype(self) -> torch.dtype:
        """Of the parameters."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def find_device(self) -> torch.device:
        """The device.

        Raises:
            ValueError: it is not there.
        """
        device = torch.device(self.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                "device=cuda needs an NVIDIA GPU and a CUDA build of torch, but torch sees none; "
                "use device=cpu"
            )
        return device

    def autocast(self) -> torch.autocast:
        """The context that forward passes run in."""
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16")
