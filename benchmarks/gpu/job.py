"""Stages with time limits, and what became of each."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

ROOT = Path(__file__).resolve().parents[2]
# Between the request to end and the end by force.
_GRACE_SECONDS = 10

Status = Literal["passed", "failed", "timed out", "skipped"]


class StageFailedError(Exception):
    """A stage did not do its work, for the reason given."""


class StageUnavailableError(Exception):
    """A stage could not do its work on this machine, which says nothing about correctness."""


@dataclass(frozen=True)
class StageResult:
    """What became of a stage.

    Attributes:
        name: of the stage.
        status: how it ended.
        seconds: that it took.
        detail: why it did not pass; empty where it did.
    """

    name: str
    status: Status
    seconds: int
    detail: str


@dataclass(frozen=True)
class Job:
    """Runs the commands of one stage from the root of the checkout.

    Attributes:
        log: what the commands print goes there.
        deadline: of all commands together, by `time.monotonic`.
        environ: their environment.
    """

    log: IO[str]
    deadline: float
    environ: Mapping[str, str]

    def say(self, text: str) -> None:
        """Write a line into the log."""
        self.log.write(f"{text}\n")
        self.log.flush()

    def run(
        self,
        command: Sequence[str | Path],
        *,
        environ: Mapping[str, str] | None = None,
        stdout: IO[str] | None = None,
        stderr: IO[str] | None = None,
    ) -> int:
        """Run a command, with all that it starts, until its end or the deadline.

        Args:
            command: the program and its arguments.
            environ: its environment, where it differs from that of the stage.
            stdout, stderr: where what it prints goes, if not into the log.

        Returns:
            Its exit status; negative where a signal ended it.

        Raises:
            FileNotFoundError: there is no such program.
            subprocess.TimeoutExpired: the deadline came first.
        """
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environ if environ is None else environ,
            stdin=subprocess.DEVNULL,
            stdout=stdout or self.log,
            stderr=stderr or self.log,
            # A group of its own, which can be ended as a whole.
            start_new_session=True,
        )
        try:
            return process.wait(max(self.deadline - time.monotonic(), 0.0))
        except BaseException:
            _end(process)
            raise

    def check(
        self, command: Sequence[str | Path], *, environ: Mapping[str, str] | None = None
    ) -> None:
        """Run a command that must end with status 0.

        Raises:
            StageFailedError: it ended with another status.
        """
        if status := self.run(command, environ=environ):
            raise StageFailedError(f"status {status}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_GRACE_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


class Stages:
    """Runs stages one after the other, within a time for all of them.

    Args:
        total: seconds for all stages.
        most: no stage is given more seconds than this.
    """

    def __init__(self, total: int, most: float = float("inf")) -> None:
        self.results: list[StageResult] = []
        self._total, self._most = total, most
        self._began = time.monotonic()

    @property
    def seconds(self) -> int:
        """Since the beginning."""
        return int(time.monotonic() - self._began)

    def say(self, text: str) -> None:
        """Print a line with the time since the beginning."""
        print(f"[{self.seconds} s] {text}", flush=True)

    def run(
        self,
        name: str,
        work: Callable[[Job], None],
        *,
        limit: float,
        share: int,
        log: Path,
        environ: Mapping[str, str],
    ) -> bool:
        """Run a stage for at most `limit` seconds, and until `share` percent of the total are over.

        Args:
            name: of the stage.
            work: what it does.
            limit, share: see above.
            log: a file to which what it prints is added.
            environ: the environment of its commands.

        Returns:
            Whether it passed.
        """
        limit = int(min(limit, self._total * share / 100 - self.seconds, self._most))
        if limit < 2:
            return self.record(name, "skipped", detail="no time left")
        self.say(f"{name}: begins, at most {limit} s")
        began = time.monotonic()
        status: Status = "passed"
        detail = ""
        with log.open("a", encoding="utf-8") as file:
            try:
                work(Job(file, began + limit, environ))
            except subprocess.TimeoutExpired:
                status, detail = "timed out", f"after {limit} s"
            except StageUnavailableError as error:
                file.write(f"{error}\n")
                status, detail = "skipped", f"not possible here, see {log.name}"
            except (StageFailedError, OSError) as error:
                status, detail = "failed", str(error)
        return self.record(name, status, int(time.monotonic() - began), detail)

    def record(self, name: str, status: Status, seconds: int = 0, detail: str = "") -> bool:
        """Note what became of a stage and say so; returns whether it passed."""
        self.results.append(StageResult(name, status, seconds, detail))
        self.say(f"{name}: {status}" + (f" ({detail})" if detail else ""))
        return status == "passed"
