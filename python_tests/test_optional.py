"""A missing package of an extra is named with a command that installs it."""

from __future__ import annotations

from importlib import metadata

import pytest

from deq_kernels.optional import require_packages


def test_the_advice_works_for_every_way_of_installing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel has no checkout, and what was never installed has no requirements."""
    packages = "matplotlib jaxopt scipy torchdeq"
    message = "absent_package is not installed; it comes with the extra 'bench': pip install"
    with pytest.raises(ImportError, match=f"^{message} {packages}$"):
        require_packages("absent_package", extra="bench")

    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    with pytest.raises(ImportError, match=r"pip install '\.\[bench\]' in the checkout$"):
        require_packages("absent_package", extra="bench")


def test_requirements_with_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "numpy",
        'a>=2; extra == "bench"',
        'b ; sys_platform == "linux" and extra == "bench"',
        'c; extra == "test"',
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    with pytest.raises(ImportError, match=r"pip install 'a>=2' b$"):
        require_packages("absent_package", extra="bench")
