"""`deq-zoo evaluate`: a trained model on its test data."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from deq_kernels.program import EXPECTED, fail_with

SPLITS = ("test", "validation")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "evaluate",
        help="evaluate a trained model",
        description="Evaluate the model of a checkpoint that `deq-zoo train` wrote, on data "
        "that it was\nnot trained with. The checkpoint says which model and dataset.",
        epilog="example:\n  deq-zoo evaluate runs/first/checkpoint.safetensors",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the file")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default=SPLITS[0],
        help="part of the dataset (default: %(default)s)",
    )
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder of a dataset that is read from disk"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: as in training)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate; return the exit status."""
    from deq_zoo.evaluate import evaluate_checkpoint

    try:
        config, metrics = evaluate_checkpoint(
            args.checkpoint, split=args.split, data_root=args.data_root, device=args.device
        )
    except EXPECTED as error:
        return fail_with(error)
    if args.json:
        values = {"task": config.task, "data": config.data, "split": args.split}
        print(json.dumps({**values, **metrics.to_json()}, indent=2))
        return 0
    print(f"{config.task} {config.preset} on {config.data}, {args.split}: {metrics.format_value()}")
    print(f"loss {metrics.loss:.4f}")
    if metrics.solver_steps is not None and metrics.converged is not None:
        print(f"solver steps {metrics.solver_steps:.1f}, converged {100 * metrics.converged:.0f} %")
    return 0
