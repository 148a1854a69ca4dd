"""`deq-kernels info`: what this installation runs on, and what to do about anything missing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

from deq_kernels.program import FAILED, fail


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
    parser.add_argument(
        "--plan-graphs",
        nargs=3,
        type=int,
        metavar=("GRAPHS", "NODES", "FEATURES"),
        help="print how the native CUDA kernel solves a float32 graph cell over so many graphs of "
        "so many nodes each, on this GPU (without one: on an H200)",
    )
    parser.add_argument(
        "--plan-dense",
        nargs=2,
        type=int,
        metavar=("BATCH", "DIM"),
        help="likewise of a dense cell z = phi(W z + u)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; return the exit status."""
    from deq_kernels import _launches, backend_info

    info = backend_info()
    report, lines = info.as_dict(), [str(info)]
    gpu = _launches.present_gpu() or _launches.Gpu()
    try:
        if args.plan is not None:
            batch, dim, rank = args.plan
            plan = _launches.plan_stream(batch=batch, dim=dim, rank=rank)
            launch = _launches.plan_launch(batch=batch, dim=dim, rank=rank, gpu=gpu)
            report["plan"] = plan
            report["launch"] = {"device": gpu.name, **launch}
            step = f"one step at batch {batch}, dim {dim}, rank {rank}, float32"
            lines += _table(f"{step}, on the CPU:", plan)
            lines += _table(f"{step}, on {gpu.name}:", launch)
        if args.plan_graphs is not None:
            graphs, nodes, features = args.plan_graphs
            cell = _launches.plan_cells(samples=graphs, nodes=nodes, dim=features, gpu=gpu)
            report["graph_cell"] = {"device": gpu.name, **cell}
            solve = f"a graph cell over {graphs} graph(s) of {nodes} nodes, {features} features"
            lines += _table(f"{solve}, float32, on {gpu.name}:", cell)
        if args.plan_dense is not None:
            batch, dim = args.plan_dense
            cell = _launches.plan_cells(samples=batch, nodes=None, dim=dim, gpu=gpu)
            report["dense_cell"] = {"device": gpu.name, **cell}
            solve = f"a dense cell at batch {batch}, dim {dim}"
            lines += _table(f"{solve}, float32, on {gpu.name}:", cell)
    except (RuntimeError, ValueError) as error:
        return fail(str(error), FAILED)
    print(json.dumps(report, indent=2) if args.json else "\n".join(lines))
    return 0


def _table(title: str, values: Mapping[str, object]) -> list[str]:
    width = max(map(len, values))
    return ["", title, *(f"  {name:<{width}}  {value}" for name, value in values.items())]
