"""A clear message where a package of one of the extras is missing."""

from collections.abc import Iterator
from contextlib import contextmanager


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
            f"pip install 'deq-kernels[{extra}]'"
        ) from error
