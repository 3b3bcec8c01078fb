# SPDX-License-Identifier: Apache-2.0
"""How the processes of one run find each other and agree before they start."""

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from fmfa_jax.machines.launchers import launch
from fmfa_jax.machines.lifecycle import leave_with_the_others

T = TypeVar("T")
_PIECE = 2**26
"""Bytes that are broadcast at a time."""


@dataclass(frozen=True)
class Processes:
    """This process among all processes of the run."""

    index: int
    count: int
    launcher: str


def initialize_distributed(
    *, heartbeat_seconds: int = 100, preemption: bool = True
) -> Processes:
    """Join the other processes of the run, if there are any.

    `launchers.launch` says how they are found. Call it before anything else uses JAX; a
    second call only reports.

    Args:
        heartbeat_seconds: A process silent for longer counts as dead and ends the run.
        preemption: Whether JAX takes SIGTERM, for `lifecycle.StopSignal`; otherwise it
            ends the process.

    Raises:
        ValueError: What the environment says of processes cannot be used.
    """
    found = launch(os.environ)
    if found.launcher == "none" or jax.distributed.is_initialized():
        return Processes(jax.process_index(), jax.process_count(), found.launcher)
    if not preemption:
        jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        **found.arguments, heartbeat_timeout_seconds=heartbeat_seconds
    )
    if jax.process_count() > 1:
        leave_with_the_others()
    return Processes(jax.process_index(), jax.process_count(), found.launcher)


def gather(value: Any) -> list[Any]:
    """Return every process's JSON `value`, in process order.

    All processes must call it. With one process it is a JSON round trip.
    """
    text = json.dumps(value).encode()
    if jax.process_count() == 1:
        return [json.loads(text)]
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(text))))
    row = np.zeros(_few(int(sizes.max())), np.uint8)
    row[: len(text)] = np.frombuffer(text, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(row))
    return [
        json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)
    ]


def first_of(text: str) -> str:
    """Return, on all processes alike, the first text that is not empty, or ""."""
    return next(filter(None, gather(text)), "")


def broadcast(value: Any) -> Any:
    """Return process 0's JSON `value` on every process; all must call it."""
    text = json.dumps(value).encode() if jax.process_index() == 0 else b""
    told = np.array(divmod(len(text), _PIECE), np.int32)
    pieces, rest = multihost_utils.broadcast_one_to_all(told).tolist()
    size = _PIECE * pieces + rest
    length = min(_PIECE, _few(size))
    found = []
    for start in range(0, size, length):
        row = np.zeros(length, np.uint8)
        piece = np.frombuffer(text[start : start + length], np.uint8)
        row[: len(piece)] = piece
        found.append(multihost_utils.broadcast_one_to_all(row).tobytes())
    return json.loads(b"".join(found)[:size])


def _few(size: int) -> int:
    """Round up to one of a few lengths, for each is compiled."""
    return 1 << (size - 1).bit_length()


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


@contextmanager
def on_first(what: str, context: AbstractContextManager[T]) -> Iterator[T | None]:
    """Enter a context on process 0 alone; None on the others.

    Args:
        what: Name of what is entered; see `together`, which tells all of a failure.
        context: The context.
    """
    with ExitStack() as held:
        entered = None
        with together(what):
            if jax.process_index() == 0:
                entered = held.enter_context(context)
        yield entered


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
