"""A picture of a diagnosis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deq_kernels.optional import optional_import

if TYPE_CHECKING:
    from deq_kernels.diagnostics.diagnosis import Diagnosis


def plot_diagnosis(diagnosis: Diagnosis, path: Path) -> None:
    """Draw the residuals of the solve, and cosine and norm ratio of each estimator.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with optional_import(extra="plot"):
        from matplotlib.figure import Figure

    rows = [row for row in diagnosis.estimators if row.skipped is None]
    figure = Figure(figsize=(13, 1.8 + 0.4 * max(len(rows), 4)), layout="constrained")
    solve, cosine, ratio = figure.subplots(1, 3)
    for trace in diagnosis.forward.trace:
        solve.plot(range(1, len(trace) + 1), trace, color="tab:blue", alpha=0.5, linewidth=1)
    solve.set(yscale="log", xlabel="evaluations of f", ylabel="‖f(z) − z‖", title="forward solve")

    places = range(len(rows))
    for place, row in zip(places, rows, strict=True):
        count = len(row.adjoint_cosine)
        cosine.scatter(row.adjoint_cosine, [place] * count, color="tab:blue", s=12, alpha=0.6)
        ratio.scatter(row.adjoint_norm_ratio, [place] * count, color="tab:blue", s=12, alpha=0.6)
        if row.parameter_cosine is not None and row.parameter_norm_ratio is not None:
            cosine.scatter([row.parameter_cosine], [place], color="tab:red", marker="D", s=28)
            ratio.scatter([row.parameter_norm_ratio], [place], color="tab:red", marker="D", s=28)
    for axes, title in ((cosine, "cosine to the exact gradient"), (ratio, "norm over exact")):
        axes.axvline(1.0, color="0.8", zorder=0)
        axes.set(title=title, xlabel="dots: w of a sample\ndiamonds: all parameters")
        axes.invert_yaxis()
    cosine.set_yticks(places, [f"{row.name}, {row.vjps} VJPs" for row in rows])
    ratio.set_yticks(places, [""] * len(rows))
    figure.savefig(path, dpi=120)
