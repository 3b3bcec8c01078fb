# SPDX-License-Identifier: Apache-2.0
"""One of the processes of test_hosts: takes jobs, each a whole run, until told to end.

Usage: host.py FOLDER, with COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID as a user
would set them. A job is a line of JSON on standard input, see `Job`; its outcome goes
into FOLDER/outcomes/NAME-PROCESS.json. An error that a job does not expect ends the
process as it would end `main.py`.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax._src import cache_key, compilation_cache

from data_pipeline.buckets import Bucket
from data_pipeline.records import Split
from fmfa_jax.files import write_json
from fmfa_jax.training import loop, session
from tests.tiny_run import tiny_config

STEPS, BATCH, IDENTITIES = 5, 16, 8

# Two steps an epoch: the weak method mines from its third step on. An eps far above
# the gradients' rounding, as the real configs have it: a key's bias has a gradient of
# exactly 0, and Adam with a small one would make whole steps of its noise. The rate is
# the paper's: at 1e-3 rounding grew tenfold a step.
SETTINGS = {
    "data.options.identities": IDENTITIES,
    "train.batch_size": BATCH,
    "train.epochs": 3,
    "train.stop_step": STEPS,
    "optimizer.lr": 1e-5,
    "optimizer.eps": 1e-3,
    "checkpoint.every_steps": STEPS,
    "data.caption_buckets": (),
    "eval.every_epochs": 0,
}

PRESETS = {"fmfa": "repaired", "weak": "weak-plus", "rde": "rde"}


@dataclass(frozen=True)
class Job:
    """A run that all processes of a group take part in.

    Attributes:
        name: of the outcome.
        run: the run's folder.
        method: fmfa | weak | rde.
        changes: of the config, by dotted keys.
        expect: end | error (whose text is the outcome).
        other: process -> what that process has otherwise: changes, code.
        trap: process -> what happens to its data: {"do", "step", "after"}, see `trap`.
    """

    name: str
    run: str
    method: str = "fmfa"
    changes: dict[str, Any] = field(default_factory=dict)
    expect: str = "end"
    other: dict[str, Any] = field(default_factory=dict)
    trap: dict[str, Any] = field(default_factory=dict)


def config(folder: Path, method: str = "fmfa", changes: dict[str, Any] | None = None):
    """The config of every run here."""
    tiny = tiny_config(folder, PRESETS[method])
    with tiny.unlocked():
        tiny.update_from_flattened_dict(SETTINGS | (changes or {}))
    return tiny


def trap(do: str, step: int, after: str) -> None:
    """Make this process stop at its data.

    Args:
        do: KILL or STOP (those signals to itself) | error (a disk that fails).
        step: the last one whose batch it still gets.
        after: first wait for this file to exist, a path or URL.
    """
    batches = loop.device_batches

    def trapped(session: Any, method: Any, start: int, *rest: Any) -> Iterator[Any]:
        for number, batch in enumerate(batches(session, method, start, *rest), start):
            if number == step:
                wait_for(lambda: Bucket(after).single())
                if do == "error":
                    raise OSError("the disk is gone")
                os.kill(os.getpid(), getattr(signal, f"SIG{do}"))
            yield batch

    loop.device_batches = trapped


def share_programs(process: int) -> None:
    """Compile each step once, on process 0, and let the others load it.

    On CPUs JAX keeps a program under another name for each process, and only the first
    may write: without this they would compile every step of every run.
    """
    cache_key._hash_accelerator_config = lambda *hashed: None
    read = compilation_cache.get_executable_and_time

    def patient(key: str, *rest: Any) -> Any:
        found = None, None
        while key.startswith("jit_step-") and not found[0]:
            with contextlib.suppress(Exception):  # it is just being written
                found = read(key, *rest)
            time.sleep(0.05)
        return found if found[0] else read(key, *rest)

    if process > 0:
        compilation_cache.get_executable_and_time = patient


def wait_for(what: Callable[[], Any]) -> None:
    while not what():
        time.sleep(0.1)


def count_reads() -> list[tuple[str, int]]:
    """A list that every read of a picture is added to: split and index."""
    read, reads = Split.read, []

    def counted(self: Split, index: int) -> bytes:
        reads.append((self.name, int(index)))
        return read(self, index)

    Split.read = counted
    return reads


def take(job: Job, folder: Path, process: int) -> dict[str, Any]:
    """Do a job; its outcome."""
    other = job.other.get(str(process), {})
    if "code" in other:
        session.code_version = lambda: other["code"]
    if str(process) in job.trap:
        trap(**job.trap[str(process)])
    changes = job.changes | other.get("changes", {})
    started = time.monotonic()
    try:
        loop.train(config(folder, job.method, changes), job.run)
    except (ValueError, RuntimeError, OSError) as error:
        if job.expect != "error":
            raise
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": "", "seconds": time.monotonic() - started}


def main() -> None:
    """Take jobs until standard input ends."""
    folder, process = Path(sys.argv[1]), int(os.environ.get("PROCESS_ID", "0"))
    share_programs(process)
    reads = count_reads()
    batches, code_version = loop.device_batches, session.code_version
    for line in sys.stdin:
        job = Job(**json.loads(line))
        reads.clear()
        outcome = take(job, folder, process)
        loop.device_batches, session.code_version = batches, code_version
        outcome |= {"reads": reads, "keras": "keras" in sys.modules}
        write_json(folder / "outcomes" / f"{job.name}-{process}.json", outcome)


if __name__ == "__main__":
    main()
