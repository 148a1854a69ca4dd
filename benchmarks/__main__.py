"""`python -m benchmarks`: time solves against what people use today."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.broyden.cases import MEMORY_CASE
from benchmarks.device import DEVICES, find_device
from benchmarks.provider import (
    Provider,
    ProviderAbsentError,
    find_provider,
    providers_on,
)
from benchmarks.run import Settings, measure
from benchmarks.suite import Suite
from benchmarks.suites import DEFAULT, SUITES
from deq_kernels.optional import require_packages
from deq_kernels.program import EXPECTED, fail, fail_with, run_program
from deq_zoo.commands.numbers import positive_int

if TYPE_CHECKING:
    from benchmarks.run import ForceRegime
    from benchmarks.suite_report import Report

_ROUNDS = 9
_QUICK_ROUNDS = 3
_DTYPES = ("float32", "float64")
_PLOT_SUFFIXES = (".png", ".svg", ".pdf")
_DESCRIPTION = """\
Time whole solves against other packages and plain PyTorch. A suite is what is solved, and who is
compared on it:

{suites}

All providers of a suite solve the same problem from the same start. Before anything is timed, each
one's answers are compared with float64 ones; a provider that did other work is refused, and the
command exits with 1. Timed rounds are interleaved. For Broyden solves the evaluations of the map
are counted too, and the memory bandwidth that shares refer to is measured in the same rounds; on a
GPU the step is also recorded in a CUDA graph and timed without the map.
"""
_EPILOG = """\
examples:
  python -m benchmarks --quick
  python -m benchmarks cells --threads 2 --json cells.json
  python -m benchmarks --cases 8x61440x18 --providers ours,torchdeq --threads 1
  python -m benchmarks --memory --json result.json --plot result.png
  python -m benchmarks --device cuda --regimes --memory --json gpu.json
  python -m benchmarks --render result.json

The table goes to standard output, progress to standard error. Run on an idle machine: only ratios
within one run mean something on a shared one.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and return the exit status."""
    return run_program(build_parser, argv)


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=_DESCRIPTION.format(suites=_for_each_suite("  {name:<8}  {summary}", sep="\n")),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Do what the parsed options ask for and return the exit status."""
    if args.list or args.render is not None:
        if given := _options_of_a_measurement(args):
            return fail(
                f"--list and --render measure nothing and take no other option, but got "
                f"{', '.join(given)}; leave them out"
            )
        if args.list:
            _print_list(SUITES.values() if args.suite is None else [SUITES[args.suite]])
            return 0
        return _render(args)

    suite = SUITES[args.suite or DEFAULT]
    device_name = args.device or DEVICES[0]
    try:
        _check_options(args, suite)
        cases = _cases(args, suite, device_name)
        providers = _providers(args, suite, device_name)
        device = find_device(device_name)
        if args.plot is not None:
            require_packages("matplotlib", extra="bench")
        _prepare_outputs(args.json, args.plot)
        settings = Settings(
            device=device,
            dtype=args.dtype or _DTYPES[0],
            rounds=args.rounds or (_QUICK_ROUNDS if args.quick else _ROUNDS),
            threads=args.threads,
            commit=args.commit,
            tests=args.tests,
            save=None if args.json is None else partial(_save_json, path=args.json),
            say=_say,
            memory=args.memory,
            force_regime=_force_regime(device_name) if args.regimes else None,
        )
        report = measure(suite, cases, providers, settings)
        print(suite.shown_as.table(report))
        _save(suite, report, json_path=args.json, plot_path=args.plot)
    except EXPECTED as error:
        return fail_with(error)
    return 1 if report.refusals else 0


def _for_each_suite(template: str, *, sep: str = "; ") -> str:
    return sep.join(
        template.format(
            name=suite.name,
            summary=suite.summary,
            format=suite.case_format,
            cases=_names(suite.cases("cpu")),
            gpu_cases=_names(suite.cases("cuda")),
            quick_cases=_names(suite.cases("cpu", quick=True)),
            gpu_quick_cases=_names(suite.cases("cuda", quick=True)),
            providers=_names(providers_on("cpu", suite.providers)),
            gpu_providers=_names(providers_on("cuda", suite.providers)),
        )
        for suite in SUITES.values()
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "suite",
        nargs="?",
        choices=tuple(SUITES),
        metavar="SUITE",
        help=f"{' or '.join(SUITES)} (default: {DEFAULT}; with --list: all)",
    )
    selection = parser.add_mutually_exclusive_group()
    selection.add_argument(
        "--cases",
        metavar="CASE,...",
        help="cases, separated by commas; "
        + _for_each_suite("of {name}: {format} (default: {cases}; on a GPU: {gpu_cases})"),
    )
    parser.add_argument(
        "--device",
        choices=DEVICES,
        help=f"where to measure (default: {DEVICES[0]}); cuda is the GPU that "
        "CUDA_VISIBLE_DEVICES puts first",
    )
    parser.add_argument(
        "--providers",
        metavar="NAME,...",
        help="providers, separated by commas; "
        + _for_each_suite("of {name} (default: {providers}; on a GPU: {gpu_providers})"),
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
        nargs="?",
        const=MEMORY_CASE.name,
        metavar="CASE",
        help=f"of {_with_option('memory')}: also measure the peak memory of a solve: on the CPU "
        "(Linux only) each provider in a process of its own, on a GPU what torch allocates (case: "
        f"{MEMORY_CASE.name} if none is given)",
    )
    parser.add_argument(
        "--regimes",
        action="store_true",
        help=f"of {_with_option('regimes')}, on a GPU: also time the recorded step of ours in each "
        "regime of its kernels, where the sizes allow it",
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
        help="few rounds of few cases, under 30 s; "
        + _for_each_suite("of {name}: {quick_cases} (on a GPU: {gpu_quick_cases})"),
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--list", action="store_true", help="list the cases and providers, and measure nothing"
    )
    instead.add_argument(
        "--render",
        type=Path,
        metavar="JSON",
        help="print the Markdown table of an earlier result of any suite, and measure nothing",
    )


def _with_option(option: str) -> str:
    return " and ".join(suite.name for suite in SUITES.values() if option in suite.options)


def _options_of_a_measurement(args: argparse.Namespace) -> list[str]:
    """Name the options given that have an effect on a measurement only."""
    names = (
        *("cases", "quick", "device", "providers", "rounds", "dtype", "threads", "memory"),
        *("regimes", "tests", "commit", "json", "plot"),
    )
    return [f"--{name}" for name in names if getattr(args, name) not in (None, False)]


def _check_options(args: argparse.Namespace, suite: Suite) -> None:
    """Raise ValueError where an option is given that the suite does not have."""
    for option in sorted(frozenset().union(*(each.options for each in SUITES.values()))):
        if getattr(args, option) not in (None, False) and option not in suite.options:
            raise ValueError(
                f"--{option} is an option of the suite {_with_option(option)}, but got it with "
                f"{suite.name}; leave it out"
            )


def _cases(args: argparse.Namespace, suite: Suite, device: str) -> Sequence[Any]:
    if args.cases is None:
        return suite.cases(device, quick=args.quick)
    return [suite.find_case(text) for text in args.cases.split(",")]


def _providers(args: argparse.Namespace, suite: Suite, device: str) -> Sequence[Provider[Any]]:
    if args.providers is None:
        return providers_on(device, suite.providers)
    return [find_provider(name.strip(), suite.providers) for name in args.providers.split(",")]


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


def _names(named: Iterable[Any]) -> str:
    return ", ".join(item.name for item in named)


def _force_regime(device: str) -> "ForceRegime":
    """What makes the native kernels of a GPU take a regime for a while.

    Raises:
        ValueError: the device is no GPU.
    """
    from deq_kernels._launches import force_regime

    if device != "cuda":
        raise ValueError("--regimes is about kernels on a GPU; add --device cuda or leave it out")
    return force_regime


def _print_list(suites: Iterable[Suite]) -> None:
    for suite in suites:
        print(f"{suite.name}: {suite.summary}")
        for device in DEVICES:
            print(f"cases on --device {device} ({suite.case_format}):")
            for case in suite.cases(device):
                print(f"  {case.name}")
        print("providers, and where they are measured unless asked for elsewhere:")
        for provider in suite.providers:
            print(f"  {provider.name}: {provider.description} ({', '.join(provider.devices)})")
            for device in provider.devices:
                if absent := _why_absent(provider, device):
                    print(f"    absent on {device}: {absent}")


def _why_absent(provider: Provider[Any], device: str) -> str | None:
    try:
        find_device(device)
        provider.load(device)
    except (ProviderAbsentError, ValueError) as error:
        return str(error)
    return None


def _render(args: argparse.Namespace) -> int:
    from benchmarks.suites import format_markdown, load_report

    path: Path = args.render
    try:
        report = load_report(path)
        table = format_markdown(report, _link(path))
    except (OSError, ValueError) as error:
        return fail(f"cannot render {path}: {error}")
    if args.suite not in (None, report.suite):
        return fail(f"{path} is a report of {report.suite}, but got {args.suite}; leave it out")
    print(table)
    return 0


def _link(path: Path) -> str:
    """The path as the README in the root of the repository links it, where it lies in there."""
    from benchmarks.machine import CHECKOUT

    absolute = path.resolve()
    if absolute.is_relative_to(CHECKOUT):
        return absolute.relative_to(CHECKOUT).as_posix()
    return path.as_posix()


def _save_json(report: "Report", path: Path) -> None:
    from benchmarks.stored import save_report

    save_report(report, path)


def _save(
    suite: Suite, report: "Report", *, json_path: Path | None, plot_path: Path | None
) -> None:
    if json_path is not None:
        _save_json(report, json_path)
        _say(f"wrote {json_path}")
    if plot_path is not None:
        suite.shown_as.save_plot(report, plot_path)
        _say(f"wrote {plot_path}")


def _plot_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _PLOT_SUFFIXES:
        raise argparse.ArgumentTypeError(
            f"a chart is a file that ends in {', '.join(_PLOT_SUFFIXES)}, but got {text!r}"
        )
    return path


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
