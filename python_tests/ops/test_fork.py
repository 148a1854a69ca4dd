"""A process may fork while other threads are at work in the package."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deq_kernels import _native

# Threads that take memory from the pool and empty it, while the main thread forks. A child that
# does not end within its alarm is killed by it, and is what fails.
FORKS = """
import os, signal, threading
import torch
import deq_kernels as dk
from deq_kernels.ops import memory

like, ended = torch.empty(1), threading.Event()

def take_and_empty():
    while not ended.is_set():
        histories = [memory.new_history(like, (1, rows, 1 << 20), torch.float32) for rows in (2, 3)]
        del histories
        dk.empty_cache()

threads = [threading.Thread(target=take_and_empty) for _ in range(3)]
for thread in threads:
    thread.start()
broken = 0
for _ in range(30):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        history = memory.new_history(like, (1, 2, 1 << 20), torch.float32)
        history[0, 1] = 1.0
        del history
        dk.empty_cache()
        with dk.use_backend("reference"):
            pass
        os._exit(0)
    broken += os.waitpid(child, 0)[1] != 0
    if broken:
        break
ended.set()
for thread in threads:
    thread.join()
raise SystemExit(broken)
"""


@pytest.mark.skipif(_native.load_cpu().path is None, reason="no compiled CPU library")
def test_a_child_forked_under_load_takes_memory() -> None:
    command = [sys.executable, "-c", FORKS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
