# SPDX-License-Identifier: Apache-2.0
"""How the processes of one run find each other and agree before they start."""

import importlib.util
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from fmfa_jax.machines.lifecycle import leave_with_the_others


@dataclass(frozen=True)
class Processes:
    """This process among all processes of the run."""

    index: int
    count: int
    launcher: str


def initialize_distributed(*, heartbeat_seconds: int = 100) -> Processes:
    """Join the other processes of the run, if there are any.

    Detected, in this order: COORDINATOR_ADDRESS, NUM_PROCESSES and PROCESS_ID (under
    Open MPI the latter two may be left out, in an indexed Kubernetes Job the last),
    SLURM (`srun` with several tasks), Open MPI, a Cloud TPU. Otherwise nothing happens
    and the run has one process. Call it before anything else uses JAX; a second call
    only reports.

    Args:
        heartbeat_seconds: A process silent for longer counts as dead and ends the run.

    Raises:
        ValueError: The environment announces processes but lacks a part.
    """
    launcher = detect_launcher(os.environ)
    if launcher == "none" or jax.distributed.is_initialized():
        return Processes(jax.process_index(), jax.process_count(), launcher)
    explicit: dict[str, Any] = {}
    if launcher == "environment":
        explicit = explicit_processes(os.environ)
    jax.distributed.initialize(**explicit, heartbeat_timeout_seconds=heartbeat_seconds)
    if jax.process_count() > 1:
        leave_with_the_others()
    return Processes(jax.process_index(), jax.process_count(), launcher)


def detect_launcher(environ: Mapping[str, str]) -> str:
    """Return what started the run: environment, slurm, openmpi, tpu or none."""
    if any(environ.get(name) for name in _EXPLICIT):
        return "environment"
    if "SLURM_STEP_NODELIST" in environ and _number(environ, _SLURM_TASKS) > 1:
        return "slurm"
    if _number(environ, "OMPI_COMM_WORLD_SIZE") > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environ:  # gone in Open MPI 5
            raise ValueError(
                "Open MPI started several processes but names no coordinator: pass "
                "one to all of them, mpirun -x COORDINATOR_ADDRESS=HOST:PORT ..."
            )
        return "openmpi"
    return "tpu" if _on_tpu(environ) else "none"


def explicit_processes(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return jax.distributed.initialize's arguments from COORDINATOR_ADDRESS & co.

    Raises:
        ValueError: Names the variables that are missing.
    """
    found = {
        "COORDINATOR_ADDRESS": environ.get("COORDINATOR_ADDRESS"),
        "NUM_PROCESSES": environ.get("NUM_PROCESSES")
        or environ.get("OMPI_COMM_WORLD_SIZE"),
        "PROCESS_ID": environ.get("PROCESS_ID")
        or environ.get("OMPI_COMM_WORLD_RANK")
        or environ.get("JOB_COMPLETION_INDEX"),
    }
    missing = [name for name, value in found.items() if not value]
    if missing:
        raise ValueError(
            f"wanted {', '.join(found)} together, missing: {', '.join(missing)}; set "
            "them in every process or unset all of them to run a single one"
        )
    arguments: dict[str, Any] = {
        "coordinator_address": found["COORDINATOR_ADDRESS"],
        "num_processes": int(found["NUM_PROCESSES"] or 0),
        "process_id": int(found["PROCESS_ID"] or 0),
    }
    local = environ.get("OMPI_COMM_WORLD_LOCAL_RANK")
    if local and not environ.get("PROCESS_ID"):
        # One GPU per process, as JAX itself does under Open MPI 4.
        ids = environ.get("JAX_LOCAL_DEVICE_IDS") or local
        arguments["local_device_ids"] = [int(each) for each in ids.split(",")]
    return arguments


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
    """Return every process's JSON `value`, in process order.

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


def broadcast(value: Any) -> Any:
    """Return process 0's JSON `value` on every process; all must call it."""
    return gather(value)[0]


@contextmanager
def together(what: str) -> Iterator[None]:
    """Run a block on all processes; if it fails on any, raise on all.

    Args:
        what: Name of the block, such as "opening the data".

    Raises:
        Exception: Where it failed, what was raised there.
        RuntimeError: On the other processes, naming which failed and why.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    told = "" if failure is None else f"{type(failure).__name__}: {failure}"
    lines = [
        f"  process {index}: {text}" for index, text in enumerate(gather(told)) if text
    ]
    if failure is not None:
        raise failure
    if lines:
        raise RuntimeError(f"{what} failed on other processes:\n" + "\n".join(lines))


def check_shared(folder: Path) -> None:
    """Check that all processes see the same `folder`, which is created if absent.

    Raises:
        ValueError: On all processes alike, naming those that see another one.
    """
    if jax.process_count() == 1:
        return
    marker = folder / f".seen-{broadcast(uuid.uuid4().hex)}"
    first = jax.process_index() == 0
    with together(f"writing into the run folder {folder}"):
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            marker.touch()
    seen = gather(marker.is_file())
    if first:
        marker.unlink()
    blind = [str(index) for index, each in enumerate(seen) if not each]
    if blind:
        raise ValueError(
            f"process {', '.join(blind)} does not see what process 0 writes into "
            f"{folder}: wanted a --workdir on a file system that all hosts share"
        )


def agree(values: Mapping[str, Any]) -> None:
    """Check that `values` are the same on all processes.

    Args:
        values: JSON values, nested mappings allowed: configuration, fingerprint of
            the data, version of the code.

    Raises:
        ValueError: On all processes alike, naming each key that differs, its values
            and the processes that hold them.
    """
    found = [flatten_dict(each, sep=".") for each in gather(values)]
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
