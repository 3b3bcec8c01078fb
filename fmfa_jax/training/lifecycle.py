# SPDX-License-Identifier: Apache-2.0
"""How processes of one run find each other, agree, stop together and never hang."""

import faulthandler
import importlib.util
import json
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fmfa_jax.training.manifests import flatten

STALLED_EXIT = 70


@dataclass(frozen=True)
class Processes:
    """This process among all processes of the run."""

    index: int
    count: int
    launcher: str


def initialize_distributed(*, heartbeat_seconds: int = 100) -> Processes:
    """Join the other processes of the run, if there are any.

    Detected, in this order: COORDINATOR_ADDRESS, NUM_PROCESSES and PROCESS_ID (under
    Open MPI the latter two may be left out), SLURM (`srun` with several tasks), Open
    MPI, a Cloud TPU. Otherwise nothing is done and the run has one process. Call it
    before anything else uses JAX; a second call only reports.

    Args:
        heartbeat_seconds: a process silent for so long is dead and ends the run.

    Raises:
        ValueError: the environment announces processes but lacks a part.
    """
    launcher = detect_launcher(os.environ)
    if launcher == "none" or jax.distributed.is_initialized():
        return Processes(jax.process_index(), jax.process_count(), launcher)
    explicit: dict[str, Any] = {}
    if launcher == "environment":
        explicit = explicit_processes(os.environ)
    jax.distributed.initialize(**explicit, heartbeat_timeout_seconds=heartbeat_seconds)
    return Processes(jax.process_index(), jax.process_count(), launcher)


def detect_launcher(environ: Mapping[str, str]) -> str:
    """Return what started the run: environment | slurm | openmpi | tpu | none."""
    if any(environ.get(name) for name in _EXPLICIT):
        return "environment"
    if "SLURM_STEP_NODELIST" in environ and _number(environ, _SLURM_TASKS) > 1:
        return "slurm"
    if _number(environ, "OMPI_COMM_WORLD_SIZE") > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environ:  # Open MPI 5 has dropped it
            raise ValueError(
                "Open MPI started several processes but names no coordinator: pass "
                "one to all of them, mpirun -x COORDINATOR_ADDRESS=HOST:PORT ..."
            )
        return "openmpi"
    return "tpu" if _on_tpu(environ) else "none"


def explicit_processes(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return jax.distributed.initialize's arguments from COORDINATOR_ADDRESS & co.

    Raises:
        ValueError: names the variables that are missing.
    """
    found = {
        "COORDINATOR_ADDRESS": environ.get("COORDINATOR_ADDRESS"),
        "NUM_PROCESSES": environ.get("NUM_PROCESSES")
        or environ.get("OMPI_COMM_WORLD_SIZE"),
        "PROCESS_ID": environ.get("PROCESS_ID") or environ.get("OMPI_COMM_WORLD_RANK"),
    }
    missing = [name for name, value in found.items() if not value]
    if missing:
        raise ValueError(
            f"wanted {', '.join(found)} together, missing: {', '.join(missing)}; set "
            "them in every process or unset all of them to run a single one"
        )
    return {
        "coordinator_address": found["COORDINATOR_ADDRESS"],
        "num_processes": int(found["NUM_PROCESSES"] or 0),
        "process_id": int(found["PROCESS_ID"] or 0),
    }


_EXPLICIT = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
_SLURM_TASKS = "SLURM_STEP_NUM_TASKS"


def _number(environ: Mapping[str, str], name: str) -> int:
    return int(environ.get(name) or 0)


def _on_tpu(environ: Mapping[str, str]) -> bool:
    if environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    pod = ("MEGASCALE_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES")
    if any(environ.get(name) for name in pod):
        return True
    chips = any(Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0"))
    return chips and importlib.util.find_spec("libtpu") is not None


def gather(value: Any) -> list[Any]:
    """Return every process's JSON `value`, in the order of the processes.

    All processes must call it. With one process it is a JSON round trip.
    """
    text = json.dumps(value).encode()
    if jax.process_count() == 1:
        return [json.loads(text)]
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(text))))
    row = np.zeros(int(sizes.max()), np.uint8)
    row[: len(text)] = np.frombuffer(text, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(row))
    return [
        json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)
    ]


def share(value: Any) -> Any:
    """Return process 0's JSON `value` on every process; all must call it."""
    return gather(value)[0]


def agree(values: Mapping[str, Any]) -> None:
    """Compare `values` over all processes; return only if they are the same.

    Args:
        values: JSON values, nested mappings allowed: configuration, fingerprint of
            the data, version of the code.

    Raises:
        ValueError: on every process alike, naming each differing key, the values and
            the processes that hold them.
    """
    found = [flatten(each) for each in gather(values)]
    lines = []
    for key in sorted(set().union(*found)):
        holders: dict[str, list[int]] = {}
        for index, each in enumerate(found):
            text = json.dumps(each[key]) if key in each else "absent"
            holders.setdefault(text, []).append(index)
        if len(holders) > 1:
            lines.append(f"  {key}: " + "; ".join(map(_holding, holders.items())))
    if lines:
        raise ValueError(
            "the processes of this run disagree:\n" + "\n".join(lines) + "\nStart all "
            "of them with the same command, data and code"
        )


def _holding(item: tuple[str, list[int]]) -> str:
    text, indices = item
    noun = "process" if len(indices) == 1 else "processes"
    return f"{text} on {noun} {', '.join(map(str, indices))}"


class StopSignal:
    """Turns SIGTERM and SIGINT into "save a checkpoint at the next step and leave".

    A context manager, entered on the main thread after `initialize_distributed`. The
    first signal only marks the stop; a second one ends the process at once. With
    several processes JAX's preemption service takes SIGTERM and makes all of them
    stop at the same step, whichever of them was told; there a second SIGINT, not a
    second SIGTERM, ends a process at once.
    """

    def __init__(self) -> None:
        self.name = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        signals = [signal.SIGINT]
        if jax.process_count() == 1:
            signals.append(signal.SIGTERM)
        for each in signals:
            self._previous[each] = signal.signal(each, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)
        self._previous.clear()

    def requested(self, step: int) -> bool:
        """Say whether to save and leave now; call it once a step, on all processes.

        Args:
            step: the step that was just finished, the same on all processes.
        """
        if jax.process_count() == 1:
            return bool(self.name)
        stop = bool(multihost_utils.reached_preemption_sync_point(step))
        if stop and not self.name:
            self.name = "SIGTERM"
        return stop

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.name:
            _write(f"{name} again: leaving at once, without a checkpoint\n")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.name = name
        _write(f"{name}: saving a checkpoint after this step; again to leave at once\n")
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # tells JAX's preemption service


class Watchdog:
    """Ends a process that has stopped making progress, and shows where it hangs.

    A stuck peer makes JAX wait for ever, without an error. A context manager; report
    progress with `beat`. Idle time is counted in the watchdog's own ticks, so a
    suspended process is not taken for a stuck one.
    """

    def __init__(self, seconds: int | float) -> None:
        """Set the limit: it must exceed the longest compilation; 0 is off."""
        self._seconds = seconds
        self._ticks = 0
        self._last = "the start"
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._index = 0

    def __enter__(self) -> "Watchdog":
        if self._seconds > 0:
            # Asked now: JAX may not answer any more when it is needed.
            self._index = jax.process_index()
            self._thread = threading.Thread(
                target=self._watch, name="watchdog", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def beat(self, what: str) -> None:
        """Report progress; `what` ("step 12") is named if nothing follows."""
        self._last = what
        self._ticks = 0

    def _watch(self) -> None:
        parts = 20
        while not self._done.wait(self._seconds / parts):
            self._ticks += 1
            if self._ticks > parts:
                self._end()

    def _end(self) -> None:
        _write(
            f"\nwatchdog: process {self._index} has made no progress for "
            f"{self._seconds:g} s; the last was {self._last}. A peer that died or "
            "hangs is the usual cause. All stacks follow; the last checkpoint is "
            "intact and the same command resumes from it.\n"
        )
        faulthandler.dump_traceback(file=2, all_threads=True)
        os._exit(STALLED_EXIT)


def _write(text: str) -> None:
    # Unbuffered: a signal may arrive inside of print(), which cannot be re-entered.
    os.write(2, text.encode())
