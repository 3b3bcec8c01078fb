# SPDX-License-Identifier: Apache-2.0
"""Programs that are told to stop wherever they are, as real processes."""

import os
import signal
import subprocess
import sys

import pytest

STOPPED = 75
SAID = "SIGTERM: stopped; the same command starts again\n"
LOST = """
import time
while True:
    try:
        ready()
        time.sleep(60)
    except BaseException:
        pass
"""
DEAF = """
import ctypes
mutex, lock = ctypes.create_string_buffer(256), ctypes.CDLL(None).pthread_mutex_lock
lock(mutex)
ready()
lock(mutex)
"""
CLEAN = """
import time
try:
    ready()
    time.sleep(60)
finally:
    print("unwound", flush=True)
"""
FORKED = """
import os, time
child = os.fork()
if not child:
    time.sleep(60)
time.sleep(0.2)
os.kill(child, 15)
os.waitpid(child, 0)
ready()
time.sleep(60)
"""


def started(body: str, tmp_path, **environment: str) -> subprocess.Popen:
    """A program that is in `body`; it has said "ready" and nothing else."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    code = f"""
from fmfa_jax.machines import stopping
def ready():
    print("ready", flush=True)
stopping.ALONE_SECONDS = 2
with stopping.stopping_on_signals():
{lines}
"""
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=os.environ | environment,
        )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("body", [LOST, DEAF, CLEAN], ids=["lost", "deaf", "clean"])
def test_a_signal_ends_it_whatever_it_does(body, tmp_path):
    with started(body, tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == STOPPED
        said = process.stdout.read()
    assert (tmp_path / "said").read_text() == SAID
    assert ("unwound" in said) == (body is CLEAN)


def test_what_a_forked_process_is_told_is_not_for_its_parent(tmp_path):
    with started(FORKED, tmp_path) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == STOPPED


def test_of_several_the_first_ends_last(tmp_path):
    group = {"COORDINATOR_ADDRESS": "127.0.0.1:9", "NUM_PROCESSES": "2"}
    with (
        started(CLEAN, tmp_path, **group, PROCESS_ID="0") as first,
        started(DEAF, tmp_path, **group, PROCESS_ID="1") as second,
    ):
        for process in (first, second):
            process.send_signal(signal.SIGTERM)
        assert second.wait(30) == STOPPED and first.poll() is None
        assert first.wait(30) == STOPPED
