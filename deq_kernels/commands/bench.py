"""``deq-kernels bench``: time whole Broyden solves against the solvers people use today."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deq_kernels.benchmarks.broyden.cases import (
    CASES,
    GPU_CASES,
    GPU_QUICK_CASES,
    MEMORY_CASE,
    QUICK_CASES,
    Case,
    parse_case,
)
from deq_kernels.benchmarks.broyden.providers import (
    PROVIDERS,
    Provider,
    ProviderAbsentError,
    find_provider,
    providers_on,
)
from deq_kernels.benchmarks.device import DEVICES, find_device
from deq_kernels.commands.errors import fail
from deq_kernels.commands.numbers import positive_int
from deq_kernels.optional import require_packages

if TYPE_CHECKING:
    from deq_kernels.benchmarks.broyden.captured import ForceRegime
    from deq_kernels.benchmarks.broyden.report import Report

_ROUNDS = 9
_QUICK_ROUNDS = 3
_DTYPES = ("float32", "float64")
_PLOT_SUFFIXES = (".png", ".svg", ".pdf")
_SUMMARY = "time whole Broyden solves against torchdeq and plain PyTorch"
_DESCRIPTION = """\
Time whole Broyden solves against torchdeq and plain PyTorch.

All providers solve the same problem from the same start with the same number of evaluations of a
cheap map, so that the solver is what is measured. Before anything is timed, every provider's
evaluations are counted and its iterates are compared with float64 ones; a provider that did other
work is refused, and the command exits with 1. Timed rounds are interleaved, and the memory
bandwidth that shares refer to is measured in the same rounds. On a GPU the step is also recorded
in a CUDA graph and timed without the map.
"""
_EPILOG = """\
examples:
  deq-kernels bench --quick
  deq-kernels bench --cases 8x61440x18 --providers ours,torchdeq --threads 1
  deq-kernels bench --memory --json result.json --plot result.png
  deq-kernels bench --device cuda --regimes --memory --json gpu.json
  deq-kernels bench --render result.json

The table goes to standard output, progress to standard error. Run on an idle machine: only ratios
within one run mean something on a shared one.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand ``bench``."""
    parser = subparsers.add_parser(
        "bench",
        help=_SUMMARY,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_arguments(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark as a program of its own, with the options of the subcommand."""
    parser = argparse.ArgumentParser(
        description=_DESCRIPTION,
        epilog=_EPILOG.replace("deq-kernels bench", "python benchmarks/run.py"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_arguments(parser)
    return run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Do what the parsed options ask for and return the exit status."""
    if args.list or args.render is not None:
        if given := _options_of_a_measurement(args):
            return fail(
                f"--list and --render measure nothing and take no other option, but got "
                f"{', '.join(given)}; leave them out"
            )
        if args.list:
            _print_list()
            return 0
        return _render(args.render)

    from deq_kernels.benchmarks.broyden.harness import run_benchmark
    from deq_kernels.benchmarks.broyden.table import format_table

    device_name = args.device or DEVICES[0]
    cases = args.cases or _default_cases(device_name, quick=args.quick)
    rounds = args.rounds or (_QUICK_ROUNDS if args.quick else _ROUNDS)
    try:
        device = find_device(device_name)
        if args.plot is not None:
            require_packages("matplotlib", extra="bench")
        _prepare_outputs(args.json, args.plot)
        report = run_benchmark(
            cases,
            args.providers or providers_on(device_name),
            device=device,
            dtype=args.dtype or _DTYPES[0],
            rounds=rounds,
            threads=args.threads,
            memory_case=args.memory,
            force_regime=_force_regime(device_name) if args.regimes else None,
            commit=args.commit,
            tests=args.tests,
            save=None if args.json is None else partial(_save_json, path=args.json),
            say=_say,
        )
        print(format_table(report))
        _save(report, json_path=args.json, plot_path=args.plot)
    except (ImportError, OSError, ValueError) as error:
        return fail(str(error))
    return 1 if report.refusals else 0


def quick(out_dir: Path) -> "Report":
    """Measure one small and one large case in well under 30 s.

    Prints the table and writes ``bench.json`` and ``bench.png`` (needs matplotlib) into
    ``out_dir``.

    Returns:
        The report; its ``refusals`` name the providers that did not do the same work.
    """
    from deq_kernels.benchmarks.broyden.harness import run_benchmark
    from deq_kernels.benchmarks.broyden.table import format_table

    report = run_benchmark(QUICK_CASES, providers_on("cpu"), rounds=_QUICK_ROUNDS, say=_say)
    print(format_table(report))
    _save(report, json_path=out_dir / "bench.json", plot_path=out_dir / "bench.png")
    return report


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    selection = parser.add_mutually_exclusive_group()
    selection.add_argument(
        "--cases",
        type=_parse_cases,
        metavar="CASE,...",
        help="cases as BATCHxDIMxSTEPS, separated by commas; any sizes are allowed "
        f"(default: {_names(CASES)}; on a GPU: {_names(GPU_CASES)})",
    )
    parser.add_argument(
        "--device",
        choices=DEVICES,
        help=f"where to measure (default: {DEVICES[0]}); cuda is the GPU that "
        "CUDA_VISIBLE_DEVICES puts first",
    )
    parser.add_argument(
        "--providers",
        type=_parse_providers,
        metavar="NAME,...",
        help="providers, separated by commas "
        f"(default: {_names(providers_on('cpu'))}; on a GPU: {_names(providers_on('cuda'))})",
    )
    parser.add_argument(
        "--rounds",
        type=positive_int,
        metavar="N",
        help=f"timed samples per provider and case (default: {_ROUNDS}, with --quick "
        f"{_QUICK_ROUNDS})",
    )
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        help=f"dtype of the state (default: {_DTYPES[0]})",
    )
    parser.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="threads torch uses (default: torch's own choice)",
    )
    parser.add_argument(
        "--memory",
        type=_case,
        nargs="?",
        const=MEMORY_CASE,
        metavar="CASE",
        help="also measure the peak memory of a solve: on the CPU (Linux only) each provider in a "
        f"process of its own, on a GPU what torch hands out (case: {MEMORY_CASE.name} if none is "
        "given)",
    )
    parser.add_argument(
        "--regimes",
        action="store_true",
        help="on a GPU: also time the recorded step of ours in each regime of its kernels, where "
        "the sizes allow it",
    )
    parser.add_argument(
        "--tests",
        choices=("passed", "failed"),
        help="what the tests of this library said on this machine, for the report",
    )
    parser.add_argument(
        "--commit",
        metavar="HASH",
        help="the commit that is measured, for the report (default: what git says of the checkout)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        help="write all numbers as JSON, after each case what there is so far",
    )
    parser.add_argument(
        "--plot",
        type=_plot_path,
        metavar="PATH",
        help="draw a chart (.png, .svg or .pdf; needs matplotlib)",
    )
    selection.add_argument(
        "--quick",
        action="store_true",
        help=f"few rounds of two cases, {_names(QUICK_CASES)} (on a GPU: "
        f"{_names(GPU_QUICK_CASES)}): under 30 s",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--list", action="store_true", help="list the cases and providers, and measure nothing"
    )
    instead.add_argument(
        "--render",
        type=Path,
        metavar="JSON",
        help="print the Markdown table of an earlier result, and measure nothing",
    )


def _options_of_a_measurement(args: argparse.Namespace) -> list[str]:
    """Name the options given that have an effect on a measurement only."""
    names = (
        *("cases", "quick", "device", "providers", "rounds", "dtype", "threads", "memory"),
        *("regimes", "tests", "commit", "json", "plot"),
    )
    return [f"--{name}" for name in names if getattr(args, name) not in (None, False)]


def _prepare_outputs(*paths: Path | None) -> None:
    """Make the folders before minutes of measuring, not after.

    Raises:
        OSError: a file cannot be written where it should be.
    """
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise IsADirectoryError(f"a result is written to a file, but {path} is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)


def _names(named: "Sequence[Case | Provider]") -> str:
    return ", ".join(item.name for item in named)


def _default_cases(device: str, *, quick: bool) -> tuple[Case, ...]:
    if device == "cuda":
        return GPU_QUICK_CASES if quick else GPU_CASES
    return QUICK_CASES if quick else CASES


def _force_regime(device: str) -> "ForceRegime":
    """What makes the native kernels of a GPU take a regime for a while.

    Raises:
        ValueError: the device is no GPU.
    """
    from deq_kernels._native import force_regime

    if device != "cuda":
        raise ValueError("--regimes is about kernels on a GPU; add --device cuda or leave it out")
    return force_regime


def _print_list() -> None:
    for title, cases in (("cpu", CASES), ("cuda", GPU_CASES)):
        print(f"cases on --device {title} (BATCHxDIMxSTEPS):")
        for case in cases:
            print(f"  {case.name}")
    print("providers, and where they are measured unless asked for elsewhere:")
    for provider in PROVIDERS:
        print(f"  {provider.name}: {provider.description} ({', '.join(provider.devices)})")
        for device in provider.devices:
            if absent := _why_absent(provider, device):
                print(f"    absent on {device}: {absent}")


def _why_absent(provider: Provider, device: str) -> str | None:
    try:
        find_device(device)
        provider.load(device)
    except (ProviderAbsentError, ValueError) as error:
        return str(error)
    return None


def _render(path: Path) -> int:
    from deq_kernels.benchmarks.broyden.report import load_report
    from deq_kernels.benchmarks.broyden.table import format_markdown

    try:
        report = load_report(path)
    except (OSError, ValueError) as error:
        return fail(f"cannot render {path}: {error}")
    print(format_markdown(report, _link(path)))
    return 0


def _link(path: Path) -> str:
    """The path as the README in the root of the repository links it, where it lies in there."""
    from deq_kernels.benchmarks.machine import CHECKOUT

    absolute = path.resolve()
    if absolute.is_relative_to(CHECKOUT):
        return absolute.relative_to(CHECKOUT).as_posix()
    return path.as_posix()


def _save_json(report: "Report", path: Path) -> None:
    from deq_kernels.benchmarks.broyden.report import save_report

    save_report(report, path)


def _save(report: "Report", *, json_path: Path | None, plot_path: Path | None) -> None:
    from deq_kernels.benchmarks.broyden.plot import save_plot

    if json_path is not None:
        _save_json(report, json_path)
        _say(f"wrote {json_path}")
    if plot_path is not None:
        save_plot(report, plot_path)
        _say(f"wrote {plot_path}")


def _case(text: str) -> Case:
    try:
        return parse_case(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parse_cases(text: str) -> tuple[Case, ...]:
    return tuple(_case(part) for part in text.split(","))


def _parse_providers(text: str) -> tuple[Provider, ...]:
    try:
        return tuple(find_provider(name.strip()) for name in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _plot_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _PLOT_SUFFIXES:
        raise argparse.ArgumentTypeError(
            f"a chart is a file that ends in {', '.join(_PLOT_SUFFIXES)}, but got {text!r}"
        )
    return path


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
