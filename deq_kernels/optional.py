"""A clear message where a package of one of the extras is missing."""

import importlib
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata


@contextmanager
def optional_import(*, extra: str) -> Iterator[None]:
    """Turn a failing import inside the block into one that names the extra to install.

    Raises:
        ImportError: a package imported inside the block is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is not installed; it comes with the extra {extra!r}: "
            f"{_command_for(extra)}"
        ) from error


def _command_for(extra: str) -> str:
    """What installs the packages of an extra, from wherever this package was installed."""
    try:
        requirements = metadata.requires("deq-kernels") or []
    except metadata.PackageNotFoundError:
        requirements = []
    of_extra = [r.partition(";")[0] for r in requirements if r.endswith(f'extra == "{extra}"')]
    if not of_extra:
        return f"pip install '.[{extra}]' in the checkout"
    return f"pip install {shlex.join(map(str.strip, of_extra))}"


def require_packages(*names: str, extra: str) -> None:
    """Fail now rather than where the packages are used, which may be after a long computation.

    Args:
        names: what is imported, such as `sklearn`.
        extra: the extra that all of them come with.

    Raises:
        ImportError: one of them is not installed.
    """
    with optional_import(extra=extra):
        for name in names:
            importlib.import_module(name)
