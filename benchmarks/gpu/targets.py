"""What the kernels are meant to reach on a GPU, against what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LARGE = ("32x61440x18", "32x188160x26", "14x105000x30")
SMALL = ("1x1000x20", "32x1000x20")
# The ordinary batch of graphs.
GRAPHS = "128x40x64"


def check_broyden_targets(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What Broyden's kernels are meant to reach on a GPU, against what was measured."""
    cases = {case["name"]: case for case in report.get("cases", [])}

    def median(case: str, provider: str, field: str) -> float | None:
        for row in cases.get(case, {}).get("rows", []):
            if row["provider"] == provider and row[field] is not None:
                value: float = row[field]["median"]
                return value
        return None

    def step(case: str, name: str, field: str) -> float | None:
        for row in cases.get(case, {}).get("steps_recorded", []):
            if row["name"] == name and row[field] is not None:
                value = row[field]
                return value["median"] if isinstance(value, dict) else value
        return None

    for case in LARGE:
        for peer, factor in (("torchdeq", 10.0), ("plain", 5.0), ("plain-4k", 5.0)):
            measured = median(case, peer, "time_over_ours")
            yield at_least(f"{case}: time of {peer} over ours", factor, measured)
        share = step(case, "ours", "floor_share")
        yield at_least(f"{case}: recorded step of ours, share of the copy", 0.8, share)
        ours, triton = (step(case, name, "microseconds") for name in ("ours", "ours-triton"))
        ratio = triton / ours if ours and triton else None
        yield at_most(f"{case}: recorded step of ours-triton over ours", 1.5, ratio)
    for case in SMALL:
        microseconds = step(case, "ours", "microseconds")
        yield at_most(f"{case}: recorded step of ours, microseconds", 12.0, microseconds)
    memory = report.get("memory") or {}
    peaks = {row["provider"]: row["peak_bytes"] for row in memory.get("rows", [])}
    own_peak, peer_peak = peaks.get("ours"), peaks.get("torchdeq")
    ratio = own_peak / peer_peak if own_peak is not None and peer_peak else None
    yield at_most(f"{memory.get('case')}: peak memory of ours over torchdeq", 0.6, ratio)


def check_cell_targets(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the kernel of structured cells is meant to reach on a GPU, likewise."""
    cases = {case["name"]: case for case in report.get("cases", [])}
    for equation in ("solve", "adjoint"):
        rows = cases.get(GRAPHS, {}).get(equation, [])
        ratios = [
            row["time_over_ours"]["median"]
            for row in rows
            if row["provider"].startswith("plain-") and row["time_over_ours"] is not None
        ]
        what = f"{GRAPHS} {equation}: time of the best plain loop over ours"
        yield at_least(what, 10.0, min(ratios, default=None))
        launches = [row.get("own_launches") for row in rows if row["provider"] == "ours"]
        what = f"{GRAPHS} {equation}: launches of the kernel of ours"
        yield at_most(what, 1, launches[0] if launches else None)


def at_least(what: str, wanted: float, measured: float | None) -> dict[str, Any]:
    """A target that is met from `wanted` upwards."""
    met = None if measured is None else measured >= wanted
    return {"what": what, "wanted": f">= {wanted:g}", "measured": measured, "met": met}


def at_most(what: str, wanted: float, measured: float | None) -> dict[str, Any]:
    """A target that is met from `wanted` downwards."""
    met = None if measured is None else measured <= wanted
    return {"what": what, "wanted": f"<= {wanted:g}", "measured": measured, "met": met}
