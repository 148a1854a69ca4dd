"""Interleaving and summaries; nothing here depends on how fast anything is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import contention
from benchmarks.contention import OtherLoad
from benchmarks.timing import Timed, spread, time_interleaved


def test_spread_interpolates_quartiles() -> None:
    result = spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (result.lower_quartile, result.median, result.upper_quartile) == (2.0, 3.0, 4.0)
    assert result.samples == (4.0, 1.0, 3.0, 2.0, 5.0)


def test_spread_of_one_sample() -> None:
    result = spread([7.0])
    assert (result.lower_quartile, result.median, result.upper_quartile) == (7.0, 7.0, 7.0)


def test_every_call_gets_one_sample_per_round_and_the_order_rotates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # With a sample length of zero every call is made once per sample.
    monkeypatch.setattr("benchmarks.timing._SAMPLE_SECONDS", 0.0)
    made: list[str] = []
    calls = {name: Timed(lambda name=name: made.append(name)) for name in "abc"}
    lines: list[str] = []
    seconds = time_interleaved(calls, rounds=4, say=lines.append)
    assert {name: len(samples) for name, samples in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert all(sample > 0 for samples in seconds.values() for sample in samples)
    warm_up = 6
    assert "".join(made[warm_up:]) == "abc" + "bca" + "cab" + "abc"
    assert lines == [f"round {index} of 4" for index in (1, 2, 3, 4)]


def test_each_call_has_its_clock_and_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """The context is open around every call, and the clock is the call's own."""
    monkeypatch.setattr("benchmarks.timing._SAMPLE_SECONDS", 0.6)
    events: list[str] = []

    @contextmanager
    def context() -> Iterator[None]:
        events.append("enter")
        yield
        events.append("leave")

    def clock(call: Callable[[], object], repeats: int) -> float:
        events.append(f"clock {repeats}")
        call()
        return 0.25

    timed = Timed(lambda: events.append("call"), clock, context)
    seconds = time_interleaved({"a": timed}, rounds=1, say=lambda line: None)
    assert seconds == {"a": (0.25,)}
    first = ["enter", "call", "clock 1", "call", "leave"]
    # 0.6 s hold three calls of 0.25 s.
    sample = ["enter", "call", "clock 3", "call", "leave"]
    assert events == first + sample


def test_other_load_counts_what_this_process_did_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    # Readings of (wall, own, machine) in seconds: 10 s later, 12 s of the machine, 4 s of them own.
    readings = iter([contention._Reading(0.0, 1.0, 5.0), contention._Reading(10.0, 5.0, 17.0)])
    monkeypatch.setattr("benchmarks.contention._read", lambda: next(readings))
    assert OtherLoad().cores() == pytest.approx(0.8)


def test_helpers_are_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([contention._Reading(0.0, 1.0, 5.0), contention._Reading(10.0, 5.0, 17.0)])
    monkeypatch.setattr("benchmarks.contention._read", lambda: next(readings))
    seconds = {7: iter((2.0, 5.0)), 8: iter((0.0, 1.0))}
    monkeypatch.setattr("benchmarks.contention._seconds_of", lambda number: next(seconds[number]))
    assert OtherLoad([7, 8]).cores() == pytest.approx(0.4)


def test_other_load_is_unknown_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.contention._read", lambda: None)
    assert OtherLoad().cores() is None


def test_other_load_is_unknown_where_the_counters_stand_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readings = iter([contention._Reading(0.0, 1.0, 0.0), contention._Reading(10.0, 5.0, 0.0)])
    monkeypatch.setattr("benchmarks.contention._read", lambda: next(readings))
    assert OtherLoad().cores() is None


def test_a_reading_counts_the_ticks_that_were_not_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # user nice system idle iowait irq softirq steal, then guests, which user and nice contain.
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 50 9000 800 3 2 25 70 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    clocks = SimpleNamespace(monotonic=lambda: 12.0, process_time=lambda: 3.0)
    monkeypatch.setattr(contention, "_STAT", stat)
    monkeypatch.setattr(contention, "time", clocks)
    monkeypatch.setattr(contention.os, "sysconf", {"SC_CLK_TCK": 100}.__getitem__)
    assert contention._read() == contention._Reading(wall=12.0, own=3.0, machine=2.0)


def test_a_strange_stat_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    stat.write_text("intr 1 2 3\n")
    monkeypatch.setattr(contention, "_STAT", stat)
    with pytest.raises(RuntimeError, match="that of all cores, got 'intr'"):
        contention._read()
