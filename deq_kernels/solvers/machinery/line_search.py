"""Line searches along descent directions, each sample at its own place in its own search."""

from __future__ import annotations

import torch
from torch import Tensor

LINE_SEARCHES = ("strong_wolfe", "armijo")

SUFFICIENT_DECREASE = 1e-4
"""c₁ of the decrease condition."""

CURVATURE = 0.9
"""c₂ of the strong Wolfe condition."""

EXPANSION = 2.0
"""Growth of a step that is too short in every respect."""

MOST_TRIALS = 20
"""Trial steps of one search."""


class LineSearch:
    """Finds α with φ(α) ≤ φ(0) + c₁ α φ′(0) and, for "strong_wolfe", |φ′(α)| ≤ c₂ |φ′(0)|.

    φ is the objective along the direction. Where its change is not known, φ(β) − φ(α) is taken as
    (β − α) (φ′(α) + φ′(β)) / 2, exact for quadratic φ: with that the conditions are the approximate
    Wolfe conditions of Hager & Zhang, which need gradients only.

    "strong_wolfe" brackets and zooms; "armijo" only ever shortens the step. A new step is where φ′,
    taken as linear between the ends of the bracket, vanishes, but not too near to an end.

    Source: Nocedal & Wright 2006, algorithms 3.1, 3.5 and 3.6; Hager & Zhang 2005, conditions T1
    and T2.
    """

    def __init__(self, kind: str, batch: int, device: torch.device) -> None:
        self.kind = kind
        self.furthest_share = 0.5 if kind == "armijo" else 0.9

        def table() -> Tensor:
            return torch.zeros(batch, dtype=torch.float64, device=device)

        self.alpha = table()
        self.slope = table()  # φ′(0)
        self.low, self.low_change, self.low_slope = table(), table(), table()
        self.high, self.high_slope = table(), table()
        self.trials = torch.zeros(batch, dtype=torch.int64, device=device)

    def begin(self, samples: Tensor, slope: Tensor) -> None:
        """Start a search of `samples` [batch] bool at α = 1, with φ′(0) = slope < 0."""
        self.alpha = torch.where(samples, 1.0, self.alpha)
        self.slope = torch.where(samples, slope, self.slope)
        self.low = torch.where(samples, 0.0, self.low)
        self.low_change = torch.where(samples, 0.0, self.low_change)
        self.low_slope = torch.where(samples, slope, self.low_slope)
        self.high = torch.where(samples, torch.inf, self.high)
        self.high_slope = torch.where(samples, torch.nan, self.high_slope)
        self.trials = torch.where(samples, 0, self.trials)

    def judge(
        self, tried: Tensor, usable: Tensor, slope: Tensor, change: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Accept the step α of the samples in `tried`, or choose the next.

        Args:
            tried: samples that took their α, [batch] bool.
            usable: samples whose gradient there can be worked with, [batch] bool.
            slope: φ′(α), [batch] float64.
            change: φ(α) − φ(0), [batch] float64; NaN where it is not known.

        Returns:
            [batch] bool twice: samples whose α is accepted, and samples that have used up their
            trials without a step that lessens φ enough.
        """
        self.trials = self.trials + tried
        by_slopes = 0.5 * self.alpha * (self.slope + slope)
        from_low = 0.5 * (self.alpha - self.low) * (self.low_slope + slope)
        from_low = torch.where(change.isnan(), from_low, change - self.low_change)
        change = torch.where(change.isnan(), by_slopes, change)
        enough = change <= SUFFICIENT_DECREASE * self.alpha * self.slope
        enough &= usable & slope.isfinite()
        last = self.trials >= MOST_TRIALS
        if self.kind == "armijo":
            accepted = tried & enough
        else:
            enough_here = enough & (from_low < 0)
            flat = slope.abs() <= CURVATURE * self.slope.abs()
            accepted = tried & ((enough_here & flat) | (enough & last))
            enough = enough_here
        exhausted = tried & ~accepted & last
        self._narrow(tried & ~accepted & ~last, enough, usable, slope, change)
        return accepted, exhausted

    def _narrow(
        self, searching: Tensor, enough: Tensor, usable: Tensor, slope: Tensor, change: Tensor
    ) -> None:
        """Move an end of the bracket to α, and choose the next α."""
        to_high = searching & ~enough
        to_low = searching & enough
        turned = to_low & (slope * (self.high - self.low) >= 0)
        self.high = torch.where(turned, self.low, self.high)
        self.high_slope = torch.where(turned, self.low_slope, self.high_slope)
        self.low = torch.where(to_low, self.alpha, self.low)
        self.low_change = torch.where(to_low, change, self.low_change)
        self.low_slope = torch.where(to_low, slope, self.low_slope)
        self.high = torch.where(to_high, self.alpha, self.high)
        known = torch.where(usable, slope, torch.nan)
        self.high_slope = torch.where(to_high, known, self.high_slope)

        share = self.low_slope / (self.low_slope - self.high_slope)
        # Nothing is known of a step that failed: it was probably far too long.
        share = torch.where(share.isfinite(), share, 0.1).clamp(0.1, self.furthest_share)
        width = torch.where(self.high.isfinite(), self.high - self.low, 0.0)
        within = self.low + share * width
        following = torch.where(self.high.isfinite(), within, EXPANSION * self.alpha)
        self.alpha = torch.where(searching, following, self.alpha)
