"""A run of any suite: what it begins with, and the one loop over its cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

import torch

from deq_zoo.threads import use_threads

from .device import Device, find_device
from .machine import commit as commit_of_checkout
from .provider import Provider, load_all
from .suite_report import Report

if TYPE_CHECKING:
    from .suite import Suite

Say = Callable[[str], None]
"""Called with one line of progress at a time."""

ForceRegime = Callable[[str], AbstractContextManager[None]]

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def _say_nothing(line: str) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure, whatever the suite.

    Attributes:
        device: where.
        dtype: dtype of the states, ``float32`` or ``float64``.
        rounds: timed samples per provider and case.
        threads: number of threads torch uses; as it is now if None.
        commit: the commit that is measured; what git says of the checkout if None.
        tests: what the library's tests said, for the report.
        save: called with the report so far after each case, so that a run cut short has results.
        say: called with one line of progress at a time.
        memory: the case whose peak memory is measured too.
        force_regime: with it ours is also timed in each regime of its kernels: it makes them take
            the regime of a name inside a `with` block.
    """

    device: Device = field(default_factory=lambda: find_device("cpu"))
    dtype: str = "float32"
    rounds: int = 9
    threads: int | None = None
    commit: str | None = None
    tests: Literal["passed", "failed"] | None = None
    save: Callable[[Report], None] | None = None
    say: Say = _say_nothing
    memory: str | None = None
    force_regime: ForceRegime | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """That of the states."""
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class Run:
    """What is the same for all cases of a run.

    Attributes:
        settings: how to measure.
        providers: who is asked for.
        loaded: what solves a case, by provider.
        absent: why the other providers are absent.
    """

    settings: Settings
    providers: Sequence[Any]
    loaded: Mapping[str, Any]
    absent: Mapping[str, str]


def measure(
    suite: Suite, cases: Sequence[Any], providers: Sequence[Provider[Any]], settings: Settings
) -> Report:
    """Measure all providers on all cases.

    Raises:
        ImportError: a package that the data of a case needs is not installed.
        ValueError: an unknown dtype, no case or provider, a provider given twice, fewer than one
            round or thread, or a case that cannot be measured.
    """
    _check(cases, providers, settings)
    with use_threads(settings.threads):
        run = suite.begin(Run(settings, providers, *load_all(providers, settings.device.name)))
        report = suite.report_type(
            suite=suite.name,
            schema=suite.schema,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            commit=settings.commit or commit_of_checkout(),
            machine=settings.device.describe(),
            versions=settings.device.versions(),
            dtype=settings.dtype,
            rounds=settings.rounds,
            providers={provider.name: provider.description for provider in providers},
            tests=settings.tests,
            cases=(),
            **suite.facts(settings),
        )
        for index, case in enumerate(cases):
            say = _prefixed(settings.say, f"[{index + 1}/{len(cases)}] {case.name}: ")
            report = replace(report, cases=(*report.cases, suite.run_case(case, run, say)))
            if settings.save is not None:
                settings.save(report)
        return suite.finish(report, run)


def _check(cases: Sequence[object], providers: Sequence[Provider[Any]], settings: Settings) -> None:
    """Raise ValueError unless there is something to measure, and each provider once."""
    if settings.dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but got {settings.dtype!r}")
    if not cases or not providers:
        raise ValueError("a run needs at least one case and one provider, but got none")
    names = [provider.name for provider in providers]
    if len(set(names)) < len(names):
        raise ValueError(
            f"every provider is measured once, but got {', '.join(names)}; name each one once"
        )
    if settings.rounds < 1:
        raise ValueError(f"rounds must be at least 1, but got {settings.rounds}")


def _prefixed(say: Say, prefix: str) -> Say:
    """``say`` with something before every line."""
    return lambda line: say(prefix + line)
