"""Whole Anderson solves, as a suite of the command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..broyden.cases import parse_case
from ..broyden.solve_report import SolveReport
from ..broyden.suite import SolveSuite
from .cases import CASES, QUICK_CASES, AndersonCase
from .providers import PROVIDERS


@dataclass(frozen=True, kw_only=True)
class AndersonReport(SolveReport):
    """One run."""

    method: ClassVar[str] = "Anderson"
    traffic: ClassVar[str] = "2k + 9 vectors for the step over k changes"


class AndersonSuite(SolveSuite):
    """Whole Anderson solves of a cheap map against torchdeq and plain PyTorch."""

    name = "anderson"
    summary = "whole Anderson solves of a cheap map, against torchdeq and plain PyTorch"
    providers = PROVIDERS
    report_type = AndersonReport

    def cases(self, device: str, *, quick: bool = False) -> Sequence[AndersonCase]:
        return QUICK_CASES if quick else CASES

    def find_case(self, text: str) -> AndersonCase:
        return parse_case(text, AndersonCase)
