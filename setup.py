"""Thin driver: CMake compiles, this file finds the tools and says where the results belong.

Metadata lives in pyproject.toml, sources and flags in CMakeLists.txt.

Environment variables:
    DEQ_KERNELS_NATIVE     `auto` (default): compile what this machine can, and record why anything
                           is absent. `on`: anything absent is an error. `off`: pure Python. A
                           compiler that is there and fails is always an error.
    DEQ_KERNELS_BUILD_DIR  folder in which CMake works, kept for incremental builds. Without it
                           every build starts from nothing.
    CXX                    the C++ compiler, as CMake reads it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "deq_kernels"
# The library holds no Python symbols and is loaded by torch; the module is the only file tied to a
# Python version.
LIBRARY = f"{PACKAGE}.lib.libdeq_kernels_cpu"
MODULE = f"{PACKAGE}._build"
TARGETS = {LIBRARY: "deq_kernels_cpu", MODULE: "_build"}
BINARIES = {LIBRARY: "lib/libdeq_kernels_cpu.so", MODULE: "_build.*.so"}
RECORD = "_build_record.json"


class BuildError(SystemExit):
    """Ends the build with a message and without a Python traceback."""


def check_setuptools(version: str) -> None:
    """Refuse a setuptools that misreads pyproject.toml, as builds without isolation may bring."""
    if int(version.partition(".")[0]) < 77:
        raise BuildError(
            f"pyproject.toml states its license as setuptools 77 and newer read it, but "
            f"{sys.executable} has setuptools {version}. Run `pip install --upgrade setuptools`, "
            "or leave out --no-build-isolation."
        )


def requested_native(environ: Mapping[str, str]) -> str:
    """Return the value of DEQ_KERNELS_NATIVE, checked."""
    requested = environ.get("DEQ_KERNELS_NATIVE", "auto")
    if requested not in ("auto", "on", "off"):
        raise BuildError(
            f"DEQ_KERNELS_NATIVE must be auto, on or off, but is {requested!r}. "
            "Unset it to compile wherever a C++ compiler is found."
        )
    return requested


def find_compiler(environ: Mapping[str, str]) -> str | None:
    """Return the C++ compiler command: CXX if set, else the first of the usual names on PATH."""
    path = environ.get("PATH", "")
    chosen = environ.get("CXX")
    if chosen:
        if shutil.which(shlex.split(chosen)[0], path=path) is None:
            raise BuildError(
                f"CXX must name a C++ compiler, but {chosen!r} is not an executable on PATH. "
                "Unset CXX, or give the full path of the compiler."
            )
        return chosen
    return next(filter(None, (shutil.which(n, path=path) for n in ("c++", "g++", "clang++"))), None)


def absent_parts(environ: Mapping[str, str]) -> dict[str, str]:
    """Return which extensions are not built, each with the reason and the cure."""
    requested = requested_native(environ)
    if requested == "off":
        reason = "the package was built with DEQ_KERNELS_NATIVE=off; build it again without that"
        return dict.fromkeys(TARGETS, reason)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if find_compiler(environ) is None:
        reason = (
            "no C++ compiler was found when the package was built (looked for CXX, c++, g++ and "
            "clang++ on PATH); install one, for example the package g++, and build it again"
        )
        absent = dict.fromkeys(TARGETS, reason)
    elif not header.exists():
        reason = (
            f"the C headers of Python were not found when the package was built (no {header}); "
            "install them, for example the package python3-dev, and build it again"
        )
        absent = {MODULE: reason}
    else:
        return {}
    if requested == "on":
        raise BuildError(
            f"DEQ_KERNELS_NATIVE=on demands all native code, but {reason}. "
            "DEQ_KERNELS_NATIVE=auto builds what this machine can."
        )
    return absent


def update_record(package_dir: Path) -> None:
    """Write into the package which native parts are absent, and why; nothing if none is."""
    absent = absent_parts(os.environ)
    for part in absent:
        # Binaries of an earlier editable build would still be loaded.
        for stale in package_dir.glob(BINARIES[part]):
            stale.unlink()
    record = package_dir / RECORD
    if absent:
        record.write_text(json.dumps({"absent": absent}, indent=2) + "\n", encoding="utf-8")
    else:
        record.unlink(missing_ok=True)


def build_tool(name: str, folder_attribute: str, environ: Mapping[str, str]) -> str:
    """Return the path of cmake or ninja: the pip package of that name, else the one on PATH.

    pip adds a build environment's scripts to PATH only in isolated builds, so the package is asked
    first.
    """
    if importlib.util.find_spec(name) is not None:
        folder = getattr(importlib.import_module(name), folder_attribute, None)
        found = folder and shutil.which(name, path=folder)
        if found:
            return found
    found = shutil.which(name, path=environ.get("PATH", ""))
    if found is None:
        raise BuildError(
            f"Compiling the native libraries needs {name}, which is neither a package of "
            f"{sys.executable} nor on PATH. Run `pip install {name}`, leave out "
            "--no-build-isolation, or set DEQ_KERNELS_NATIVE=off."
        )
    return found


def torch_definitions() -> list[str]:
    """Return where torch's headers and libraries are, found without importing torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(
            f"Compiling the native libraries needs torch, which {sys.executable} does not have. "
            "Run `pip install torch==2.13.0`, leave out --no-build-isolation, or set "
            "DEQ_KERNELS_NATIVE=off."
        )
    return [
        f"-DDEQ_TORCH_DIR={spec.submodule_search_locations[0]}",
        f"-DDEQ_TORCH_VERSION={importlib.metadata.version('torch')}",
    ]


def module_definitions(*, needed: bool) -> list[str]:
    """Return whether the Python module is built, and where pybind11's CMake package is."""
    if not needed:
        return ["-DDEQ_PYTHON_MODULE=OFF"]
    if importlib.util.find_spec("pybind11") is None:
        raise BuildError(
            f"Compiling the native libraries needs pybind11, which {sys.executable} does not have. "
            "Run `pip install pybind11`, leave out --no-build-isolation, or set "
            "DEQ_KERNELS_NATIVE=off."
        )
    folder = importlib.import_module("pybind11").get_cmake_dir()
    return ["-DDEQ_PYTHON_MODULE=ON", f"-Dpybind11_DIR={folder}"]


def compile_native(build_dir: Path, parts: list[str], environ: Mapping[str, str]) -> Path:
    """Configure and build with CMake; return the folder that is laid out like the package."""
    output_dir = build_dir / "out"
    cmake = build_tool("cmake", "CMAKE_BIN_DIR", environ)
    configure = [
        cmake,
        *("-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={build_tool('ninja', 'BIN_DIR', environ)}",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DDEQ_OUTPUT_DIR={output_dir}",
        *torch_definitions(),
        *module_definitions(needed=MODULE in parts),
    ]
    compiler = find_compiler(environ)
    assert compiler is not None, "absent_parts() has seen a compiler"
    build_environ = {**environ, "CXX": compiler}
    build = [cmake, "--build", str(build_dir), "--target", *(TARGETS[part] for part in parts)]
    for command in (configure, build):
        print("+", shlex.join(command), flush=True)
        status = subprocess.run(command, env=build_environ, check=False).returncode
        if status != 0:
            raise BuildError(
                f"The C++ compiler is there ({compiler}) but the native build failed with status "
                f"{status}; its output is above. To install the pure Python package instead, set "
                "DEQ_KERNELS_NATIVE=off."
            )
    return output_dir


class BuildExt(build_ext):
    """Builds all extensions with one CMake run and copies them to where setuptools wants them."""

    def run(self) -> None:
        super().run()
        if self.inplace:
            update_record(ROOT / PACKAGE)

    def build_extensions(self) -> None:
        kept = os.environ.get("DEQ_KERNELS_BUILD_DIR")
        build_dir = Path(kept or self.build_temp).resolve() / "native"
        if not kept:
            shutil.rmtree(build_dir, ignore_errors=True)
        parts = [extension.name for extension in self.extensions]
        output_dir = compile_native(build_dir, parts, os.environ)
        for part in parts:
            built = output_dir / Path(self.get_ext_filename(part)).relative_to(PACKAGE)
            destination = Path(self.get_ext_fullpath(part))
            destination.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(built), str(destination))

    def copy_extensions_to_source(self) -> None:
        (ROOT / PACKAGE / "lib").mkdir(exist_ok=True)
        super().copy_extensions_to_source()

    def get_ext_filename(self, fullname: str) -> str:
        # setuptools asks with the dotted name and with its last part alone.
        if LIBRARY.endswith(fullname):
            return str(Path(*fullname.split(".")).with_suffix(".so"))
        return super().get_ext_filename(fullname)


class BuildPy(build_py):
    """Adds the record of what is absent to the package."""

    def run(self) -> None:
        super().run()
        update_record(ROOT / PACKAGE if self.editable_mode else Path(self.build_lib) / PACKAGE)


def main() -> None:
    check_setuptools(setuptools.__version__)
    absent = absent_parts(os.environ)
    extensions = [Extension(part, sources=[]) for part in TARGETS if part not in absent]
    setup(ext_modules=extensions, cmdclass={"build_ext": BuildExt, "build_py": BuildPy})


if __name__ == "__main__":
    main()
