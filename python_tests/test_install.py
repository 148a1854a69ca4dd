"""setup.py: what it decides, and what an installation made by it says."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
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
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def _nvcc(folder: Path, *, release: str = "13.0") -> str:
    """Make a program that answers what setup.py asks of nvcc, and compiles nothing."""
    return _executable(
        folder / "nvcc",
        f"""case "$1" in
--version) echo "Cuda compilation tools, release {release}, V{release}.1" ;;
--list-gpu-arch) printf 'compute_%s\\n' 75 80 90 120 ;;
--dryrun) echo '#$ _HERE_={folder}' >&2 ;;
*) exit 1 ;;
esac""",
    )


def _pip_install(source: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Install the copy into a folder beside it, without CUDA; return what pip printed."""
    chosen = ("CXX", "CUDACXX", "CMAKE_ARGS")
    kept = {
        k: v for k, v in os.environ.items() if k not in chosen and not k.startswith("DEQ_KERNELS_")
    }
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    return subprocess.run(
        [*command, "--target", str(source.parent / "target"), str(source)],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**kept, "DEQ_KERNELS_CUDA": "off", **environ},
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


@pytest.mark.parametrize("variable", ["DEQ_KERNELS_NATIVE", "DEQ_KERNELS_CUDA"])
def test_unknown_mode_is_refused(driver: ModuleType, tmp_path: Path, variable: str) -> None:
    _executable(tmp_path / "bin" / "g++", "")
    with pytest.raises(SystemExit, match=f"{variable} must be auto, on or off, but is 'yes'"):
        driver.absent_parts({"PATH": str(tmp_path / "bin"), variable: "yes"})


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
    _nvcc(tmp_path / "bin")
    environ = {"PATH": str(tmp_path / "bin")}
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    absent = driver.absent_parts(environ)
    assert set(absent) == {driver.MODULE}
    assert "python3-dev" in absent[driver.MODULE]
    with pytest.raises(SystemExit, match="python3-dev"):
        driver.absent_parts({**environ, "DEQ_KERNELS_NATIVE": "on"})
    (tmp_path / "Python.h").touch()
    assert driver.absent_parts(environ) == {}


def test_cuda_compiler_is_the_first_of_the_usual_places(
    driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / name for name in ("usual", "path", "cuda_path", "cuda_home", "chosen")]
    monkeypatch.setattr(driver, "USUAL_TOOLKIT", places[0])
    environ = {
        "PATH": str(places[1] / "bin"),
        "CUDA_PATH": str(places[2]),
        "CUDA_HOME": str(places[3]),
    }
    assert driver.find_nvcc(environ) is None
    for place in places[:4]:
        nvcc = _nvcc(place / "bin")
        assert driver.find_nvcc(environ) == nvcc
    chosen = _nvcc(places[4])
    assert driver.find_nvcc({**environ, "CUDACXX": chosen}) == chosen
    with pytest.raises(SystemExit, match="CUDACXX must name nvcc"):
        driver.find_nvcc({**environ, "CUDACXX": "nvcc-99"})


def test_cuda_version_is_read_from_the_release(driver: ModuleType, tmp_path: Path) -> None:
    assert driver.nvcc_version(_nvcc(tmp_path, release="12.8")) == (12, 8)
    assert driver.nvcc_version(_nvcc(tmp_path, release="13.10")) == (13, 10)
    with pytest.raises(SystemExit, match=r"must state a release, but prints:\nhello"):
        driver.nvcc_version(_executable(tmp_path / "hello", "echo hello"))


def test_cuda_compiler_that_fails_is_never_hidden(driver: ModuleType, tmp_path: Path) -> None:
    _executable(tmp_path / "bin" / "g++", "")
    broken = _executable(tmp_path / "bin" / "nvcc", "echo injected: no nvcc.profile; exit 3")
    environ = {"PATH": str(tmp_path / "bin")}
    with pytest.raises(SystemExit, match=r"failed with status 3:\ninjected: no nvcc\.profile"):
        driver.absent_parts(environ)
    assert driver.find_nvcc(environ) == broken
    assert driver.CUDA_LIBRARY in driver.absent_parts({**environ, "DEQ_KERNELS_CUDA": "off"})


def test_cuda_compiler_on_path_stands_for_the_one_in_the_toolkit(
    driver: ModuleType, tmp_path: Path
) -> None:
    """CMake would look for the toolkit beside a script that only calls nvcc."""
    real = _nvcc(tmp_path / "toolkit")
    script = _executable(tmp_path / "bin" / "nvcc", f'exec {real} "$@"')
    assert driver.nvcc_of_toolkit(script) == real


def test_absent_cuda_is_recorded_with_its_cure(
    driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not there on most machines, and hinders nothing unless it is demanded."""
    monkeypatch.setattr(driver, "USUAL_TOOLKIT", tmp_path / "usual")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "Python.h").touch()
    _executable(tmp_path / "bin" / "g++", "")
    environ = {"PATH": str(tmp_path / "bin"), "DEQ_KERNELS_NATIVE": "on"}
    absent = driver.absent_parts(environ)
    assert set(absent) == {driver.CUDA_LIBRARY}
    assert "no CUDA compiler was found" in absent[driver.CUDA_LIBRARY]
    assert "install the CUDA toolkit 12.8 or newer" in absent[driver.CUDA_LIBRARY]
    with pytest.raises(SystemExit, match="=on demands the CUDA library, but no CUDA compiler"):
        driver.absent_parts({**environ, "DEQ_KERNELS_CUDA": "on"})

    _nvcc(tmp_path / "bin", release="12.6")
    absent = driver.absent_parts(environ)
    assert "is of CUDA 12.6, but the library needs 12.8 or newer" in absent[driver.CUDA_LIBRARY]
    with pytest.raises(SystemExit, match=r"=on demands the CUDA library, but .* is of CUDA 12\.6"):
        driver.absent_parts({**environ, "DEQ_KERNELS_CUDA": "on"})

    _nvcc(tmp_path / "bin", release="12.8")
    assert driver.absent_parts(environ) == {}
    absent = driver.absent_parts({**environ, "DEQ_KERNELS_CUDA": "off"})
    assert "DEQ_KERNELS_CUDA=off" in absent[driver.CUDA_LIBRARY]


def test_cuda_library_needs_the_native_build(driver: ModuleType, tmp_path: Path) -> None:
    _nvcc(tmp_path / "bin")
    environ = {"PATH": str(tmp_path / "bin"), "DEQ_KERNELS_CUDA": "on"}
    with pytest.raises(SystemExit, match="demands the CUDA library, but no C"):
        driver.absent_parts(environ)
    with pytest.raises(SystemExit, match=r"demands the CUDA library, but .* DEQ_KERNELS_NATIVE=of"):
        driver.absent_parts({**environ, "DEQ_KERNELS_NATIVE": "off"})


@pytest.mark.parametrize(
    ("asked", "definition"),
    [
        (None, "-UDEQ_CUDA_ARCHS"),
        ("", "-UDEQ_CUDA_ARCHS"),
        ("90", "-DDEQ_CUDA_ARCHS=90"),
        ("80;90+PTX", "-DDEQ_CUDA_ARCHS=80;90+PTX"),
        ("80, 120+PTX", "-DDEQ_CUDA_ARCHS=80;120+PTX"),
    ],
)
def test_cuda_architectures_are_passed_on(
    driver: ModuleType, tmp_path: Path, asked: str | None, definition: str
) -> None:
    nvcc = _nvcc(tmp_path / "bin")
    environ = {"PATH": str(tmp_path / "bin")}
    if asked is not None:
        environ["DEQ_KERNELS_CUDA_ARCHS"] = asked
    on = ["-DDEQ_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}", definition]
    assert driver.cuda_definitions(environ, needed=True) == on
    assert driver.cuda_definitions(environ, needed=False) == ["-DDEQ_CUDA=OFF"]


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        ("9.0", "9.0"),
        ("sm_90", "sm_90"),
        ("90+ptx", r"90\+ptx"),
        ("80;75", "75"),  # known to nvcc, too old for the kernels
        ("80;999", "999"),
        ("90;90+PTX", "90"),
    ],
)
def test_wrong_cuda_architecture_is_named(
    driver: ModuleType, tmp_path: Path, asked: str, wrong: str
) -> None:
    nvcc = _nvcc(tmp_path / "bin")
    message = rf"of 80 and newer .* \(80, 90, 120\).* but '.*' holds '{wrong}'"
    with pytest.raises(SystemExit, match=message):
        driver.cuda_archs({"DEQ_KERNELS_CUDA_ARCHS": asked}, nvcc)


def test_record_follows_the_last_build(
    driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editable build without native code leaves no binary of an earlier one to be loaded."""
    libraries = [tmp_path / "lib" / f"libdeq_kernels_{name}.so" for name in ("cpu", "cuda")]
    libraries[0].parent.mkdir()
    for library in libraries:
        library.touch()
    monkeypatch.setenv("DEQ_KERNELS_NATIVE", "off")
    monkeypatch.delenv("DEQ_KERNELS_CUDA", raising=False)
    driver.update_record(tmp_path)
    assert not any(library.exists() for library in libraries)
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


def test_a_second_build_packs_no_deleted_modules(source: Path, tmp_path: Path) -> None:
    """setuptools keeps its copy of the package in `build` from one build to the next."""
    module = source / "deq_kernels" / "deleted.py"
    packed = []
    for number, text in enumerate(("x = 1\n", None)):
        if text is None:
            module.unlink()
        else:
            module.write_text(text, encoding="utf-8")
        wheels = tmp_path / str(number)
        command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
        subprocess.run(
            [*command, "--wheel-dir", str(wheels), str(source)],
            check=True,
            capture_output=True,
            env={**os.environ, "DEQ_KERNELS_NATIVE": "off", "DEQ_KERNELS_CUDA": "off"},
        )
        (wheel,) = wheels.iterdir()
        with zipfile.ZipFile(wheel) as archive:
            packed.append(set(archive.namelist()))
    assert packed[0] - packed[1] == {"deq_kernels/deleted.py"}
    assert packed[1] - packed[0] == set()
    assert "deq_kernels/_build_record.json" in packed[1]


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
