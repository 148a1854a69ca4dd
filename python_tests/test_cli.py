"""The command line as a process."""

from __future__ import annotations

import subprocess
import sys

from deq_kernels.cli import READER_GONE


def test_a_reader_that_stops_early_is_no_error() -> None:
    """`deq-kernels bench --list | true`: no traceback."""
    command = [sys.executable, "-m", "deq_kernels.cli", "bench", "--list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == READER_GONE
    assert errors == ""
