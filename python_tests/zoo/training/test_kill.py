"""A run that is killed in the middle goes on as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from deq_zoo.run import run_training
from python_tests.zoo.training.runs import builder, small_config

pytestmark = pytest.mark.skipif(
    find_spec("safetensors") is None or find_spec("matplotlib") is None,
    reason="a run writes safetensors and a matplotlib plot",
)

ROOT = Path(__file__).resolve().parents[3]
EPOCHS = 12
TIMEOUT_S = 240.0
PROGRAM = f"""
import sys
from pathlib import Path
from deq_zoo.run import run_training
from python_tests.zoo.training.runs import builder, small_config
run_training(small_config(training__epochs={EPOCHS}), Path(sys.argv[1]), build=builder())
"""


def test_a_killed_run_gives_the_same_bits(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = [sys.executable, "-c", PROGRAM, str(parts)]
    deadline = time.monotonic() + TIMEOUT_S
    with subprocess.Popen(command, cwd=ROOT) as process:
        while not (parts / "checkpoint.safetensors").exists():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    config = small_config(training__epochs=EPOCHS)
    resumed_at: list[int] = []
    run_training(
        config,
        parts,
        resume=True,
        build=builder(),
        on_start=lambda trainer: resumed_at.append(trainer.epoch),
    )
    assert 1 <= resumed_at[0] < EPOCHS
    run_training(config, whole, build=builder())
    name = "checkpoint.safetensors"
    assert (parts / name).read_bytes() == (whole / name).read_bytes()
