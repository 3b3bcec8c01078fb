# SPDX-License-Identifier: Apache-2.0
"""Runs that are interrupted again and again, at random moments, until they finish.

A run that has been killed, or told to stop, any number of times must leave what an
uninterrupted one leaves: the same weights, bit for bit, and each step of the log once,
with the same numbers. SOAK_KILLS is the number of kills (50), and that of SIGTERMs;
each kind of run gets its share of them. SOAK_SEED draws their moments (0).
"""

import json
import math
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fmfa_jax.run import manifests
from fmfa_jax.run.checkpoints import CORRUPT
from fmfa_jax.training.judge import BEST, LAST
from tests.fmfa_jax.machines.hosts import PATIENCE, Hosts

PRESETS = {"fmfa": "repaired", "weak": "weak", "rde": "rde-batch"}
COUNTS = (1, 2)
KINDS = len(PRESETS) * len(COUNTS)
KILLS = math.ceil(int(os.environ.get("SOAK_KILLS", "50")) / KINDS)
SEED = int(os.environ.get("SOAK_SEED", "0"))
FINISHED, STOPPED = 0, 75
UNREAD = 1.0
"""Seconds in which Python may still be reading main.py, on a busy machine."""
SPEEDS = ("_per_second", "mfu")
OPENED = "run folder: "
"""In what a run says once it has everything that its first step needs."""

CONFIG = """
import os
from pathlib import Path
from tests.fmfa_jax.machines import host
from tests.tiny_run import tiny_config

host.share_programs(int(os.environ.get("PROCESS_ID", "0")))

def get_config():
    return tiny_config(
        Path({folder!r}), {preset!r}, train__epochs=3, train__stop_step=20,
        checkpoint__every_steps=3, rde__width=64,
    )
"""


@dataclass
class Subject:
    """One method on so many processes, interrupted until enough is enough."""

    folder: Path
    method: str
    count: int
    told: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Write the config, and run it twice without an interruption."""
        self.random = random.Random(f"{SEED} {self.method} {self.count}")
        self.config = self.folder / f"{self.method}.py"
        preset = PRESETS[self.method]
        text = CONFIG.format(folder=str(self.folder), preset=preset)
        self.config.write_text(text)
        self.whole = self.folder / f"{self.method}-{self.count}-whole"
        self.finish(self.whole)  # compiles
        self.run = self.folder / f"{self.method}-{self.count}"
        started = time.monotonic()
        hosts = self.start(self.run)
        wait_for(lambda: OPENED in hosts.said() or hosts.ended(), hosts)
        self.opening = time.monotonic() - started
        hosts.expect(FINISHED)
        self.training = time.monotonic() - started - self.opening
        hosts.close()
        self.check_finished()  # the same seed, the same bits

    def start(self, run: Path) -> "Started":
        """The command that a user would give on each host."""
        command = ["main.py", f"--config={self.config}", f"--workdir={run}"]
        return Started(self.folder, f"{run.name}-said", self.count, command)

    def finish(self, run: Path) -> None:
        """Let it run to its end."""
        hosts = self.start(run)
        hosts.expect(FINISHED)
        hosts.close()

    def interrupt(self, number: signal.Signals) -> None:
        """Start the command, send it a signal at a random moment, see how it ends."""
        hosts = self.start(self.run)
        try:
            starting = self.random.random() < 0.25
            if not starting:
                wait_for(lambda: OPENED in hosts.said() or hosts.ended(), hosts)
            moment = self.random.uniform(0, [self.training, self.opening][starting])
            hosts.sleep(moment)
            where = hosts.where()
            if hosts.ended():
                hosts.expect(FINISHED)
                return self.check_finished()
            # A process that is alone at the start only waits for the other.
            alone = number == signal.SIGKILL and where != "starting"
            hosts.send(number, self.random.choice([None, 0, 1]) if alone else None)
            codes = hosts.codes(*range(self.count))
            self.told[where] += 1
            print(f"{self.run.name} {number.name} {where}: {codes}", flush=True)
            if number == signal.SIGTERM and not (starting and moment < UNREAD):
                assert set(codes) in ({STOPPED}, {FINISHED}), f"{where} {codes}"
            assert "is corrupt" not in hosts.said(), hosts.said()
            assert_sound(self.run, self.whole)
        finally:
            hosts.close()

    def check_finished(self) -> None:
        """Compare a finished run, and begin anew."""
        self.told["finished"] += 1
        assert_same(self.run, self.whole)
        shutil.rmtree(self.run)

    @property
    def interruptions(self) -> int:
        """How many there have been."""
        return self.told.total() - self.told["finished"]


class Started(Hosts):
    """Processes of one run, which end by themselves or by a signal."""

    def ended(self) -> bool:
        """Whether one of them has."""
        return any(process.poll() is not None for process in self.processes)

    def expect(self, code: int) -> None:
        """Wait for all of them to end alike."""
        codes = self.codes(*range(self.count))
        assert codes == [code] * self.count, f"{codes}\n{self.said()}"

    def sleep(self, seconds: float) -> None:
        """Wait for a moment, or for the end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.ended():
            time.sleep(0.002)

    def send(self, number: signal.Signals, only: int | None) -> None:
        """Send a signal to all of them, or to one, if there is one of that number."""
        for index, process in enumerate(self.processes):
            if only is None or only % self.count == index:
                process.send_signal(number)

    def where(self) -> str:
        """What the run was at, by what it has said."""
        if self.ended():
            return "after its end"
        said = self.logs[0].read_text()
        if OPENED not in said:
            return "starting"
        steps = said.count("\nstep ")
        if not steps:
            return "compiling"
        return "at its end" if "weights (step 20)" in said else "training"


def wait_for(what: Callable[[], bool], hosts: Hosts) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, hosts.said()
        time.sleep(0.01)


def rows(run: Path) -> list[dict]:
    """The log without speeds; the last line may be torn."""
    text = run / "metrics.jsonl"
    lines = text.read_text().split("\n")[:-1] if text.exists() else []
    return [
        {k: v for k, v in json.loads(line).items() if not k.endswith(SPEEDS)}
        for line in lines
    ]


def assert_same(run: Path, whole: Path) -> None:
    """A finished run is the uninterrupted one."""
    assert rows(run) == rows(whole)
    steps = [row["step"] for row in rows(run) if "total" in row]
    assert steps == sorted(set(steps))
    for name in (LAST, BEST):
        ours, theirs = load_file(run / name), load_file(whole / name)
        assert ours.keys() == theirs.keys()
        for key in theirs:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def assert_sound(run: Path, whole: Path) -> None:
    """An interrupted run has lost nothing but the steps since its last checkpoint."""
    kept = run / "checkpoints"
    found = [path for path in kept.glob("*") if path.name.isdecimal()]
    for path in found:
        assert manifests.verify(path).step == int(path.name)
    assert not (kept / CORRUPT).exists()
    got, want = rows(run), rows(whole)
    assert got == want[: len(got)]
    if (run / LAST).exists():  # the last table was not written yet
        assert (run / LAST).read_bytes() == (whole / LAST).read_bytes()
    newest = max((int(path.name) for path in found), default=0)
    assert newest <= max((row["step"] for row in got), default=0)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A subject of a method and a number of processes, made once."""
    folder, made = tmp_path_factory.mktemp("soak"), {}

    def subject(method: str, count: int) -> Subject:
        if (method, count) not in made:
            made[method, count] = Subject(folder, method, count)
        return made[method, count]

    return subject


@pytest.mark.soak
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("method", PRESETS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_run_is_the_uninterrupted_one(subject, method, count, number):
    """kill -9 of all processes or of one; SIGTERM, as schedulers send it, of all."""
    run = subject(method, count)
    run.told.clear()
    while run.interruptions < KILLS:
        run.interrupt(number)
    if run.run.exists():
        run.finish(run.run)
        run.check_finished()
    print(f"\n{method}, {count} process(es), {number.name}: {dict(run.told)}")
