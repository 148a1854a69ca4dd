"""setup.py: what it decides, and what an installation made by it says."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    """Return setup.py as a module; it installs nothing on import."""
    spec = importlib.util.spec_from_file_location("deq_kernels_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a copy of what a build reads, so that it leaves nothing in the checkout."""
    copy = tmp_path / "source"
    shutil.copytree(
        ROOT / "deq_kernels",
        copy / "deq_kernels",
        ignore=shutil.ignore_patterns("*.so", "__pycache__", "_build_record.json"),
    )
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def _executable(path: Path, script: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def _pip_install(source: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Install the copy into a folder beside it; return what pip printed."""
    kept = {k: v for k, v in os.environ.items() if k != "CXX" and not k.startswith("DEQ_KERNELS_")}
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    return subprocess.run(
        [*command, "--target", str(source.parent / "target"), str(source)],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**kept, **environ},
    )


def _report_of_installed(source: Path) -> str:
    """Return what the installed copy says about its backends."""
    program = "import deq_kernels as dk; print(dk.__file__); print(dk.backend_info())"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DEQ_KERNELS_")}
    target = source.parent / "target"
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=target,
        env={**environ, "PYTHONPATH": str(target)},
    )
    assert done.stdout.startswith(str(target))
    return done.stdout


def test_old_setuptools_is_named(driver: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"has setuptools 65\.5\.0\. Run `pip install --upgrade"):
        driver.check_setuptools("65.5.0")
    driver.check_setuptools("77.0.3")


def test_unknown_mode_is_refused(driver: ModuleType) -> None:
    with pytest.raises(SystemExit, match="must be auto, on or off, but is 'yes'"):
        driver.requested_native({"DEQ_KERNELS_NATIVE": "yes"})


def test_compiler_is_the_first_usual_name_on_path(driver: ModuleType, tmp_path: Path) -> None:
    clang = _executable(tmp_path / "bin" / "clang++", "")
    assert driver.find_compiler({"PATH": str(tmp_path / "bin")}) == clang
    gcc = _executable(tmp_path / "bin" / "g++", "")
    assert driver.find_compiler({"PATH": str(tmp_path / "bin")}) == gcc


def test_chosen_compiler_may_have_arguments(driver: ModuleType, tmp_path: Path) -> None:
    _executable(tmp_path / "bin" / "ccache", "")
    environ = {"PATH": str(tmp_path / "bin"), "CXX": "ccache g++-14"}
    assert driver.find_compiler(environ) == "ccache g++-14"


def test_chosen_compiler_that_is_absent_is_an_error(driver: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="CXX must name a C"):
        driver.absent_parts({"PATH": str(tmp_path), "CXX": "g++-99"})


def test_missing_python_headers_cost_only_the_module(
    driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _executable(tmp_path / "bin" / "g++", "")
    environ = {"PATH": str(tmp_path / "bin")}
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    absent = driver.absent_parts(environ)
    assert set(absent) == {driver.MODULE}
    assert "python3-dev" in absent[driver.MODULE]
    with pytest.raises(SystemExit, match="python3-dev"):
        driver.absent_parts({**environ, "DEQ_KERNELS_NATIVE": "on"})
    (tmp_path / "Python.h").touch()
    assert driver.absent_parts(environ) == {}


def test_record_follows_the_last_build(
    driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editable build without native code leaves no binary of an earlier one to be loaded."""
    library = tmp_path / "lib" / "libdeq_kernels_cpu.so"
    library.parent.mkdir()
    library.touch()
    monkeypatch.setenv("DEQ_KERNELS_NATIVE", "off")
    driver.update_record(tmp_path)
    assert not library.exists()
    assert "DEQ_KERNELS_NATIVE=off" in (tmp_path / driver.RECORD).read_text()

    monkeypatch.setattr(driver, "absent_parts", lambda environ: {})
    driver.update_record(tmp_path)
    assert not (tmp_path / driver.RECORD).exists()


@pytest.mark.parametrize(
    ("find", "advice"),
    [
        (
            lambda driver, path: driver.build_tool("absent-tool", "BIN", {"PATH": path}),
            "pip install",
        ),
        (lambda driver, path: driver.torch_definitions(), "pip install torch"),
        (lambda driver, path: driver.module_definitions(needed=True), "pip install pybind11"),
    ],
)
def test_missing_build_requirement_is_named(
    driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, find, advice: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=advice):
        find(driver, str(tmp_path))


def test_tool_on_path_serves_without_the_pip_package(driver: ModuleType, tmp_path: Path) -> None:
    tool = _executable(tmp_path / "bin" / "absent-tool", "")
    assert driver.build_tool("absent-tool", "BIN", {"PATH": str(tmp_path / "bin")}) == tool


def test_install_without_native_code_on_request(source: Path) -> None:
    done = _pip_install(source, DEQ_KERNELS_NATIVE="off")
    assert done.returncode == 0, done.stdout
    report = _report_of_installed(source)
    assert "absent: the package was built with DEQ_KERNELS_NATIVE=off" in report
    assert "native ops     none" in report


def test_install_without_a_compiler_records_why(source: Path, tmp_path: Path) -> None:
    done = _pip_install(source, PATH=str(tmp_path / "nothing"))
    assert done.returncode == 0, done.stdout
    assert "absent: no C++ compiler was found" in _report_of_installed(source)


def test_install_that_demands_native_code_fails_without_a_compiler(
    source: Path, tmp_path: Path
) -> None:
    done = _pip_install(source, PATH=str(tmp_path / "nothing"), DEQ_KERNELS_NATIVE="on")
    assert done.returncode != 0
    assert "DEQ_KERNELS_NATIVE=on demands all native code" in done.stdout
    assert not (tmp_path / "target").exists()


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs the C++ compiler c++")
def test_compiler_that_fails_is_never_hidden(source: Path, tmp_path: Path) -> None:
    """The compiler passes CMake's own trials and fails on the package's sources."""
    compiler = _executable(
        tmp_path / "bin" / "broken-c++",
        'case "$*" in *csrc/*) echo "injected: internal compiler error" >&2; exit 1;; esac\n'
        'exec c++ "$@"',
    )
    done = _pip_install(source, CXX=compiler, DEQ_KERNELS_NATIVE="auto")
    assert done.returncode != 0
    assert "injected: internal compiler error" in done.stdout
    assert "the native build failed" in done.stdout
    assert not (tmp_path / "target").exists()
