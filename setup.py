"""Thin driver: CMake compiles, this file finds the tools and says where the results belong.

Metadata lives in pyproject.toml, sources and flags in CMakeLists.txt.

Environment variables:
    DEQ_KERNELS_NATIVE     `auto` (default): compile what this machine can, and record why anything
                           is absent. `on`: an absent CPU library or module is an error. `off`: pure
                           Python. A compiler that is there and fails is always an error.
    DEQ_KERNELS_CUDA       the same for the CUDA library, which is built where nvcc is found,
                           whichever torch is installed.
    DEQ_KERNELS_CUDA_ARCHS compute capabilities that it holds code for, e.g. `90` or `80;90+PTX`.
    DEQ_KERNELS_BUILD_DIR  folder in which CMake works, kept for incremental builds. Without it
                           every build starts from nothing.
    CXX, CUDACXX           the C++ compiler, as CMake reads it; nvcc.
    CMAKE_ARGS             further arguments for CMake.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
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
# The libraries hold no Python symbols and are loaded by torch; the module is the only file tied to
# a Python version.
CPU_LIBRARY = f"{PACKAGE}.lib.libdeq_kernels_cpu"
CUDA_LIBRARY = f"{PACKAGE}.lib.libdeq_kernels_cuda"
MODULE = f"{PACKAGE}._build"
TARGETS = {
    CPU_LIBRARY: "deq_kernels_cpu",
    CUDA_LIBRARY: "deq_kernels_cuda",
    MODULE: "_build",
}
BINARIES = {
    CPU_LIBRARY: "lib/libdeq_kernels_cpu.so",
    CUDA_LIBRARY: "lib/libdeq_kernels_cuda.so",
    MODULE: "_build.*.so",
}
RECORD = "_build_record.json"
# The first that compiles for compute capabilities 100 and 120.
OLDEST_CUDA = (12, 8)
# bfloat16 arithmetic and asynchronous copies begin here.
OLDEST_ARCH = 80
USUAL_TOOLKIT = Path("/usr/local/cuda")


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


def requested(environ: Mapping[str, str], variable: str) -> str:
    """Return the value of DEQ_KERNELS_NATIVE or DEQ_KERNELS_CUDA, checked."""
    value = environ.get(variable, "auto")
    if value not in ("auto", "on", "off"):
        raise BuildError(
            f"{variable} must be auto, on or off, but is {value!r}. "
            "Unset it to compile wherever a compiler is found."
        )
    return value


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


def find_nvcc(environ: Mapping[str, str]) -> str | None:
    """Return the CUDA compiler: CUDACXX if set, else the first nvcc in the usual places."""
    path = environ.get("PATH", "")
    chosen = environ.get("CUDACXX")
    if chosen:
        found = shutil.which(chosen, path=path)
        if found is None:
            raise BuildError(
                f"CUDACXX must name nvcc, but {chosen!r} is not an executable on PATH. "
                "Unset CUDACXX, or give the full path of nvcc."
            )
        return found
    homes = [Path(environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    folders = [*(str(home / "bin") for home in homes), path, str(USUAL_TOOLKIT / "bin")]
    return next(filter(None, (shutil.which("nvcc", path=folder) for folder in folders)), None)


def ask_nvcc(nvcc: str, *arguments: str) -> str:
    """Return what nvcc prints on both of its streams."""
    command = [nvcc, *arguments]
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        raise BuildError(
            f"nvcc is there ({nvcc}) but `{shlex.join(command)}` failed with status "
            f"{done.returncode}:\n{done.stdout}\nMend the CUDA toolkit, name another nvcc in "
            "CUDACXX, or set DEQ_KERNELS_CUDA=off to leave out the CUDA library."
        )
    return done.stdout


def nvcc_version(nvcc: str) -> tuple[int, int]:
    """Return the release of nvcc, e.g. (13, 0)."""
    answer = ask_nvcc(nvcc, "--version")
    found = re.search(r"release (\d+)\.(\d+)", answer)
    if found is None:
        raise BuildError(
            f"`{nvcc} --version` must state a release, but prints:\n{answer}\n"
            "Name another nvcc in CUDACXX, or set DEQ_KERNELS_CUDA=off."
        )
    return int(found[1]), int(found[2])


def nvcc_of_toolkit(nvcc: str) -> str:
    """Return the program in the toolkit that nvcc stands for, which may be a link or a script.

    CMake looks for the rest of the toolkit beside it.
    """
    found = re.search(r"_HERE_=(.+)", ask_nvcc(nvcc, "--dryrun", "-x", "cu", os.devnull))
    return str(Path(found[1].strip()) / "nvcc") if found else nvcc


def cuda_archs(environ: Mapping[str, str], nvcc: str) -> list[str]:
    """Return the entries of DEQ_KERNELS_CUDA_ARCHS, checked; none where it is not set."""
    listed = environ.get("DEQ_KERNELS_CUDA_ARCHS", "")
    archs = [arch for arch in re.split(r"[;,\s]+", listed) if arch]
    known = re.findall(r"compute_(\d+)", ask_nvcc(nvcc, "--list-gpu-arch")) if archs else []
    usable = [arch for arch in known if int(arch) >= OLDEST_ARCH]
    bare = [arch.removesuffix("+PTX") for arch in archs]
    for arch, number in zip(archs, bare, strict=True):
        if number not in usable or bare.count(number) > 1:
            raise BuildError(
                "DEQ_KERNELS_CUDA_ARCHS must list, once each and separated by semicolons, compute "
                f"capabilities of {OLDEST_ARCH} and newer that {nvcc} knows "
                f"({', '.join(usable)}), with +PTX behind those that newer ones are to run too, "
                f"but {listed!r} holds {arch!r}. Write 80;90+PTX, for example, or unset it."
            )
    return archs


def why_no_cuda(environ: Mapping[str, str]) -> str | None:
    """Return why the CUDA library is not built, and the cure; None where it is."""
    if requested(environ, "DEQ_KERNELS_CUDA") == "off":
        return "the package was built with DEQ_KERNELS_CUDA=off; build it again without that"
    nvcc = find_nvcc(environ)
    oldest = ".".join(map(str, OLDEST_CUDA))
    if nvcc is None:
        return (
            "no CUDA compiler was found when the package was built (looked for CUDACXX, and for "
            f"nvcc in CUDA_HOME, in CUDA_PATH, on PATH and in {USUAL_TOOLKIT}); to use an NVIDIA "
            f"GPU, install the CUDA toolkit {oldest} or newer and build it again"
        )
    version = nvcc_version(nvcc)
    if version < OLDEST_CUDA:
        return (
            f"the nvcc found when the package was built ({nvcc}) is of CUDA "
            f"{version[0]}.{version[1]}, but the library needs {oldest} or newer; install a newer "
            "toolkit, name its nvcc in CUDACXX and build it again"
        )
    return None


def absent_parts(environ: Mapping[str, str]) -> dict[str, str]:
    """Return which extensions are not built, each with the reason and the cure."""
    native = requested(environ, "DEQ_KERNELS_NATIVE")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    absent = {}
    if native == "off":
        reason = "the package was built with DEQ_KERNELS_NATIVE=off; build it again without that"
        absent = dict.fromkeys(TARGETS, reason)
    elif find_compiler(environ) is None:
        reason = (
            "no C++ compiler was found when the package was built (looked for CXX, c++, g++ and "
            "clang++ on PATH); install one, for example the package g++, and build it again"
        )
        absent = dict.fromkeys(TARGETS, reason)
    elif not header.exists():
        absent[MODULE] = (
            f"the C headers of Python were not found when the package was built (no {header}); "
            "install them, for example the package python3-dev, and build it again"
        )
    if native == "on" and absent:
        raise BuildError(
            f"DEQ_KERNELS_NATIVE=on demands all native code for the CPU, but "
            f"{next(iter(absent.values()))}. DEQ_KERNELS_NATIVE=auto builds what this machine can."
        )
    no_cuda = absent.get(CUDA_LIBRARY) or why_no_cuda(environ)
    if no_cuda is not None:
        absent[CUDA_LIBRARY] = no_cuda
        if requested(environ, "DEQ_KERNELS_CUDA") == "on":
            raise BuildError(
                f"DEQ_KERNELS_CUDA=on demands the CUDA library, but {no_cuda}. "
                "DEQ_KERNELS_CUDA=auto builds what this machine can."
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


def cuda_definitions(environ: Mapping[str, str], *, needed: bool) -> list[str]:
    """Return whether the CUDA library is built, with which nvcc and for which architectures."""
    if not needed:
        return ["-DDEQ_CUDA=OFF"]
    nvcc = find_nvcc(environ)
    assert nvcc is not None, "absent_parts() has seen nvcc"
    archs = cuda_archs(environ, nvcc)
    # -U: what an earlier build in the same folder asked for is forgotten.
    chosen = f"-DDEQ_CUDA_ARCHS={';'.join(archs)}" if archs else "-UDEQ_CUDA_ARCHS"
    return ["-DDEQ_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc_of_toolkit(nvcc)}", chosen]


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
        *cuda_definitions(environ, needed=CUDA_LIBRARY in parts),
        *shlex.split(environ.get("CMAKE_ARGS", "")),
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
                f"{status}; its output is above. DEQ_KERNELS_CUDA=off leaves out the CUDA library, "
                "DEQ_KERNELS_NATIVE=off installs the pure Python package."
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
        if any(library.endswith(fullname) for library in (CPU_LIBRARY, CUDA_LIBRARY)):
            return str(Path(*fullname.split(".")).with_suffix(".so"))
        return super().get_ext_filename(fullname)


class BuildPy(build_py):
    """Copies the package into an empty folder, and adds the record of what is absent."""

    def run(self) -> None:
        built = Path(self.build_lib) / PACKAGE
        if not self.editable_mode:
            # What an earlier build left there would be packed too, modules long deleted among it.
            shutil.rmtree(built, ignore_errors=True)
        super().run()
        update_record(ROOT / PACKAGE if self.editable_mode else built)


def main() -> None:
    check_setuptools(setuptools.__version__)
    absent = absent_parts(os.environ)
    extensions = [Extension(part, sources=[]) for part in TARGETS if part not in absent]
    setup(ext_modules=extensions, cmdclass={"build_ext": BuildExt, "build_py": BuildPy})


if __name__ == "__main__":
    main()
