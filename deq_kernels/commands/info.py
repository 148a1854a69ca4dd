"""`deq-kernels info`: what this installation runs on, and what to do about anything missing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("info", help="print what this installation runs on")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--plan",
        nargs=3,
        type=int,
        metavar=("BATCH", "DIM", "RANK"),
        help="print how the native kernels run a float32 Broyden step of this size, on this CPU "
        "and on this GPU (without one: on an H200)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report; return the exit status."""
    from deq_kernels import _native, backend_info

    info = backend_info()
    report, lines = info.as_dict(), [str(info)]
    if args.plan is not None:
        batch, dim, rank = args.plan
        gpu = _native.present_gpu() or _native.Gpu()
        try:
            plan = _native.plan_stream(batch=batch, dim=dim, rank=rank)
            launch = _native.plan_launch(batch=batch, dim=dim, rank=rank, gpu=gpu)
        except (RuntimeError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
        report["plan"] = plan
        report["launch"] = {"device": gpu.name, **launch}
        step = f"one step at batch {batch}, dim {dim}, rank {rank}, float32"
        lines += _table(f"{step}, on the CPU:", plan)
        lines += _table(f"{step}, on {gpu.name}:", launch)
    print(json.dumps(report, indent=2) if args.json else "\n".join(lines))
    return 0


def _table(title: str, values: Mapping[str, object]) -> list[str]:
    width = max(map(len, values))
    return ["", title, *(f"  {name:<{width}}  {value}" for name, value in values.items())]
