"""What a result depends on: the processor, the versions, the commit."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

import deq_kernels as dk
from deq_kernels._version import __version__

# How memory is allocated decides what a fresh history costs, which is part of every solve.
_ALLOCATOR_VARIABLES = ("GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_DIRTY = "-dirty"
CHECKOUT = Path(__file__).resolve().parents[2]
"""The root of the repository, where the package runs from one."""


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def last_level_cache_bytes() -> int | None:
    """The largest cache of the first core in bytes, None where the system does not say."""
    sizes = [
        _kibibytes(path.read_text(encoding="ascii"))
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    return max(sizes, default=None)


def _kibibytes(text: str) -> int:
    return int(text.strip().removesuffix("K")) * 1024


def describe_machine() -> dict[str, str | int | None]:
    """The machine and the threads in use, as plain values."""
    return {
        "device": "cpu",
        "cpu": cpu_model(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "native_isa": dk.backend_info().active_isa,
        "threads": torch.get_num_threads(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "transparent_huge_pages": _huge_page_mode(),
        **{name: os.environ.get(name) for name in _ALLOCATOR_VARIABLES},
    }


def _huge_page_mode() -> str | None:
    """The mode in use, which the kernel writes in brackets: ``always [madvise] never``."""
    if not _HUGE_PAGES.exists():
        return None
    return _HUGE_PAGES.read_text(encoding="ascii").partition("[")[2].partition("]")[0]


def describe_versions() -> dict[str, str | None]:
    """Versions of everything measured; None for what is not installed."""
    return {
        "deq_kernels": __version__,
        "torch": str(torch.__version__),
        "torchdeq": version_of("torchdeq"),
        "jaxopt": version_of("jaxopt"),
        "jax": version_of("jax"),
        "scipy": version_of("scipy"),
        "python": platform.python_version(),
    }


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def commit(*, besides: Path | None = None) -> str | None:
    """The commit of the checkout that is measured, with ``-dirty`` where files differ from it.

    None for an installed package and for a checkout without a commit.

    Args:
        besides: a file that may differ, because the result is written to it.
    """
    if not (CHECKOUT / ".git").exists():
        return None
    name = _git("rev-parse", "--short=12", "HEAD")
    if name is None:
        return None
    changed = {
        CHECKOUT / path for path in (_git("diff", "--name-only", "-z", "HEAD") or "").split("\0")
    }
    changed -= {CHECKOUT, besides}
    return name + _DIRTY if changed else name


def is_clean(commit: str | None) -> bool:
    """Whether what `commit` returned names the very code that ran."""
    return commit is not None and not commit.endswith(_DIRTY)


def _git(*arguments: str) -> str | None:
    """What git answers; None where it is not installed, or fails."""
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None
