"""What a result on a GPU depends on: the card, its driver, the host, the versions."""

import subprocess

import torch

from .machine import describe_machine, describe_versions, version_of


def describe_gpu_machine(device: torch.device) -> dict[str, str | int | None]:
    """The GPU, its driver and the host, as plain values."""
    properties = torch.cuda.get_device_properties(device)
    return {
        **describe_machine(),
        "device": "cuda",
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_bytes": properties.total_memory,
        "l2_cache_bytes": properties.L2_cache_size,
        "driver": driver_version(),
    }


def describe_gpu_versions() -> dict[str, str | None]:
    """Versions of everything measured; None for what is not installed."""
    return {
        **describe_versions(),
        "triton": version_of("triton"),
        "cuda": torch.version.cuda,
    }


def driver_version() -> str | None:
    """The version of NVIDIA's driver; None where nvidia-smi is not there or does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    if done.returncode != 0:
        return None
    return done.stdout.partition("\n")[0].strip() or None
