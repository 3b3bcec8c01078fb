# SPDX-License-Identifier: Apache-2.0
"""Starts the processes of test_hosts as a user would, and gives them jobs."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tests.compiling import quick
from tests.fmfa_jax.machines.host import Job

ROOT = Path(__file__).parents[3]
DEVICES, PATIENCE = 4, 600


class Hosts:
    """Processes that make one run, each with its share of the devices."""

    def __init__(
        self, folder: Path, name: str, count: int, command: list[str], **trap: str
    ) -> None:
        """Start them; `trap` is an environment variable of the last one."""
        self.folder, self.count, share = folder, count, DEVICES // count
        self.logs = [folder / f"{name}-{i}.log" for i in range(count)]
        group = {
            "COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
            "NUM_PROCESSES": str(count),
        }
        self.processes = []
        for index, log in enumerate(self.logs):
            variables = quick(share) | {
                "PYTHONPATH": str(ROOT),
                "JAX_PLATFORMS": "cpu",
                "NPROC": str(4 * share),  # see tests/conftest.py
                # Hosts share no disk, but for run folders that lie on one.
                "XDG_CACHE_HOME": str(folder / f"cache-{name}-{index}"),
                "MPLCONFIGDIR": str(folder / "matplotlib"),  # a list of fonts
                # Each program is compiled once.
                "JAX_COMPILATION_CACHE_DIR": str(folder / f"compiled-{count}"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            if count > 1:  # alone, a user sets nothing
                variables |= group | {"PROCESS_ID": str(index)}
            if index == count - 1:
                variables |= trap
            with log.open("w") as file:
                started = subprocess.Popen(
                    [sys.executable, *command],
                    cwd=ROOT,
                    env=os.environ | variables,
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=file,
                    text=True,
                )
            self.processes.append(started)

    def give(self, job: Job) -> None:
        """Let all of them begin a job, after those that they have."""
        for process in self.processes:
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()

    def outcomes(self, name: str) -> list[dict]:
        """What each process tells of a job, once all are done with it."""
        paths = [
            self.folder / "outcomes" / f"{name}-{i}.json" for i in range(self.count)
        ]
        deadline = time.monotonic() + PATIENCE
        while not all(path.exists() for path in paths):
            assert time.monotonic() < deadline, self.said()
            assert all(each.poll() is None for each in self.processes), self.said()
            time.sleep(0.05)
        return [json.loads(path.read_text()) for path in paths]

    def do(self, *jobs: Job) -> list[dict]:
        """Do jobs; the outcomes of the last."""
        for job in jobs:
            self.give(job)
        return [self.outcomes(job.name) for job in jobs][-1]

    def codes(self, *indices: int) -> list[int]:
        """The exit codes of these processes, once they have ended by themselves."""
        return [self.processes[i].wait(timeout=PATIENCE) for i in indices]

    def said(self) -> str:
        """The end of every log."""
        return "\n".join(f"{log}:\n{log.read_text()[-3000:]}" for log in self.logs)

    def close(self) -> None:
        """End them all, however they are."""
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdin.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
