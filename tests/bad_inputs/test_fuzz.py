# SPDX-License-Identifier: Apache-2.0
"""Files made bad at random: read, or refused as declared, and nothing else.

`make test` reads a fixed few of each family. `make soak` goes on for FUZZ_MINUTES from
FUZZ_SEED on, watches time and memory, and reports what it saw. A case is a function of
family, seed and number: `attempt(family, folder, seed, number)` repeats it.
"""

import os
import shutil
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from tests.bad_inputs import prepared
from tests.bad_inputs.families import Family, families, read_prepared
from tests.bad_inputs.test_bad_inputs import LONGEST

MINUTES = float(os.environ.get("FUZZ_MINUTES", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
CASES = 25
HANG_SECONDS, MOST_MEMORY = 30, 200 * 2**20


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> list[Family]:
    return families(tmp_path_factory.mktemp("valid"))


def attempt(family: Family, folder: Path, seed: int, number: int) -> str:
    """Read the files of a case; return "read", or the name of the declared error."""
    draw = Random(f"{family.name} {seed} {number}")
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in family.make(draw).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    try:
        family.read(folder)
    except family.errors as error:
        assert len(str(error)) <= LONGEST
        return type(error).__name__
    return "read"


def test_a_few_of_each_family(valid, tmp_path):
    for family in valid:
        outcomes = Counter(
            attempt(family, tmp_path / "case", 1, number)
            for number in range(0 if family.slow else CASES)
        )
        assert family.slow or not family.errors or set(outcomes) != {"read"}


class Late(BaseException):
    """A case that hangs; no reader catches it."""


def _late(*_: object) -> None:
    raise Late


@dataclass
class Seen:
    """What a soak saw of a family."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    slowest: float = 0.0
    largest: int = 0

    def __str__(self) -> str:
        told = ", ".join(f"{count} {name}" for name, count in self.outcomes.items())
        return (
            f"{self.outcomes.total()} cases ({told}), slowest {self.slowest:.2f} s, "
            f"largest {self.largest / 2**20:.0f} MiB"
        )


def test_only_declared_errors_within_bounds(valid, tmp_path):
    """The soak's own oracle: what it counts as a fault."""
    seen = Seen()
    boom = Family("boom", lambda _: {}, lambda _: 1 / 0, (ValueError,))
    watched(boom, tmp_path / "x", 0, seen)
    assert len(seen.faults) == 1 and "ZeroDivisionError" in str(seen)


@pytest.mark.soak
def test_many_of_each_family(valid, tmp_path):
    read_prepared(prepared.good())  # brings TensorFlow, which is no case's memory
    seen = {family.name: Seen() for family in valid}
    stop, number = time.monotonic() + 60 * MINUTES, 0
    while time.monotonic() < stop:
        for family in valid:
            if not family.slow or number % 20 == 0:
                watched(family, tmp_path / "case", number, seen[family.name])
        number += 1
    for name, each in seen.items():
        print(f"{name}: {each}")
    faults = [text for each in seen.values() for text in each.faults.values()]
    print(f"seed {SEED}, {MINUTES:g} minutes, {len(faults)} kinds of faults")
    assert not faults, "\n\n".join(faults)


def watched(family: Family, folder: Path, number: int, seen: Seen) -> None:
    """Attempt a case under watch, and note what came of it."""
    signal.signal(signal.SIGALRM, _late)
    before, start = _forget_peak(), time.perf_counter()
    signal.alarm(HANG_SECONDS)
    try:
        outcome = attempt(family, folder, SEED, number)
    except (Exception, Late) as error:
        outcome = f"UNDECLARED {type(error).__name__}"
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}"
        told = "".join(traceback.format_exception(error))[-2000:]
        case = f"{family.name!r}, seed {SEED}, number {number}"
        seen.faults.setdefault(f"{outcome} {place}", f"{case}\n{told}")
    finally:
        signal.alarm(0)
    grown = _peak() - before
    seen.outcomes[outcome] += 1
    seen.slowest = max(seen.slowest, time.perf_counter() - start)
    seen.largest = max(seen.largest, grown)
    # TensorFlow's reader of tfrecord shards alone takes 500 MiB.
    if grown > (5 if family.slow else 1) * MOST_MEMORY:
        seen.faults["memory"] = f"{family.name!r}, number {number}: {grown} bytes more"


def _forget_peak() -> int:
    """Let the kernel measure the peak of memory anew; return what is in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line for line in lines if line.startswith("VmHWM"))
    return 1024 * int(peak.split()[1])
