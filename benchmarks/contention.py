"""How much of the processor others used while something was timed."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
# Fields of the "cpu" line after its name: user nice system idle iowait irq softirq steal.
_IDLE_FIELDS = (3, 4)
_COUNTED_FIELDS = 8
DISTURBED_CORES = 0.1
"""Above this many cores used by others, a timing with all threads is worth little."""
DISTURBED_HOST_CORES = 1.0
"""The same for a timing on a GPU, for which one thread of the host does all the work."""


@dataclass(frozen=True)
class _Reading:
    wall: float
    own: float
    machine: float


class OtherLoad:
    """Counts the cores that other processes (and the hypervisor) use from its creation on.

    One busy neighbour slows a program with a thread on every core by far more than its share,
    because all threads wait at every barrier for the one that was put aside.

    Args:
        helpers: process ids of those that work for this one, whose load is not counted.
    """

    def __init__(self, helpers: Sequence[int] = ()) -> None:
        self._helpers = tuple(helpers)
        self._helped = self._help()
        self._start = _read()

    def cores(self) -> float | None:
        """Cores used by others on average since the creation; None where the system does not say.

        That is without Linux's /proc, and where its counters stand still, as some containers have
        them: this process alone would have moved them.
        """
        now = _read()
        if self._start is None or now is None or now.machine <= self._start.machine:
            return None
        own = now.own - self._start.own + self._help() - self._helped
        others = now.machine - self._start.machine - own
        return max(0.0, others / (now.wall - self._start.wall))

    def _help(self) -> float:
        return sum(map(_seconds_of, self._helpers))


def _read() -> _Reading | None:
    """The seconds passed, used by this process, and used by the whole machine."""
    if not _STAT.exists():
        return None
    name, *fields = _STAT.read_text(encoding="ascii").splitlines()[0].split()
    if name != "cpu":
        raise RuntimeError(f"the first line of {_STAT} must be that of all cores, got {name!r}")
    ticks = [int(field) for field in fields[:_COUNTED_FIELDS]]
    busy = sum(ticks) - sum(ticks[index] for index in _IDLE_FIELDS)
    return _Reading(
        wall=time.monotonic(),
        own=time.process_time(),
        machine=busy / os.sysconf("SC_CLK_TCK"),
    )


def _seconds_of(process: int) -> float:
    """Processor time that a process has used; 0 for one that has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    # Its name, in brackets, may hold anything; user and system time are fields 14 and 15.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
