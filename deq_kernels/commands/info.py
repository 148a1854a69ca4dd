"""`deq-kernels info`: what this installation runs on, and what to do about anything missing."""

from __future__ import annotations

import argparse
import json
import sys


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("info", help="print what this installation runs on")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--plan",
        nargs=3,
        type=int,
        metavar=("BATCH", "DIM", "RANK"),
        help="print how the native kernels cut a float32 solver step of this size",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report; return the exit status."""
    from deq_kernels import _native

    info = _native.backend_info()
    report, lines = info.as_dict(), [str(info)]
    if args.plan is not None:
        batch, dim, rank = args.plan
        try:
            plan = _native.plan_stream(batch=batch, dim=dim, rank=rank)
        except (RuntimeError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
        report["plan"] = plan
        lines += ["", f"one step at batch {batch}, dim {dim}, rank {rank}, float32:"]
        lines += [f"  {name}  {value}" for name, value in plan.items()]
    print(json.dumps(report, indent=2) if args.json else "\n".join(lines))
    return 0
