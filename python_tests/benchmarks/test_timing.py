"""Interleaving and summaries; nothing here depends on how fast anything is."""

import time
from pathlib import Path

import pytest

from deq_kernels.benchmarks import contention
from deq_kernels.benchmarks.contention import OtherLoad
from deq_kernels.benchmarks.timing import spread, time_interleaved


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
    monkeypatch.setattr("deq_kernels.benchmarks.timing._SAMPLE_SECONDS", 0.0)
    made: list[str] = []
    calls = {name: lambda name=name: made.append(name) for name in "abc"}
    lines: list[str] = []
    seconds = time_interleaved(calls, rounds=4, say=lines.append)
    assert {name: len(samples) for name, samples in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert all(sample > 0 for samples in seconds.values() for sample in samples)
    warm_up = 6
    assert "".join(made[warm_up:]) == "abc" + "bca" + "cab" + "abc"
    assert lines == [f"round {index} of 4" for index in (1, 2, 3, 4)]


def test_other_load_counts_what_this_process_did_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    # Readings of (wall, own, machine) in seconds: 10 s later, 12 s of the machine, 4 s of them own.
    readings = iter([contention._Reading(0.0, 1.0, 5.0), contention._Reading(10.0, 5.0, 17.0)])
    monkeypatch.setattr("deq_kernels.benchmarks.contention._read", lambda: next(readings))
    assert OtherLoad().cores() == pytest.approx(0.8)


def test_other_load_is_unknown_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deq_kernels.benchmarks.contention._read", lambda: None)
    assert OtherLoad().cores() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the load is read from Linux's /proc")
def test_machine_time_grows_with_the_work_of_this_process() -> None:
    before = contention._read()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    after = contention._read()
    assert before is not None
    assert after is not None
    assert after.own - before.own >= 0.2
    assert after.machine - before.machine >= 0.15  # counted in ticks of 10 ms
    assert after.wall > before.wall
