# SPDX-License-Identifier: Apache-2.0
"""Batches made ahead of their use, in parallel and in order, by tf.data."""

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import numpy as np

Batch = dict[str, np.ndarray]

AHEAD_BYTES = 1 << 30
"""Approximate limit on the memory of the rows that are made ahead of their use."""

UNIT = 32
"""Rows that one call makes: a call costs TensorFlow 0.15 ms, a cached row 0.02 ms."""


@dataclass(frozen=True)
class Draft:
    """A batch whose rows are being made.

    Attributes:
        fill: Makes some of the rows; called once for each row, from several threads.
        finish: Returns the batch, once all of its rows are made.
    """

    fill: Callable[[slice], None]
    finish: Callable[[], Batch]


@functools.cache
def tensorflow() -> ModuleType:
    """Import TensorFlow without accelerators, whose memory belongs to JAX.

    The import takes seconds.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Unused here, since nothing is computed, but announced at every start.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with _hidden("keras"):  # otherwise imported, for two fifths of the time
        import tensorflow as tf
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Make a package appear absent to whatever is imported in the block."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None
    try:
        yield
    finally:
        del sys.modules[name]


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_steps(
    begin: Callable[[int], Draft], *, start: int, stop: int, rows: int, row_bytes: int
) -> Iterator[Batch]:
    """Yield the batches of the steps [start, stop) in order, made ahead in parallel.

    The unit of work is a few rows, which are written straight into their batch: all
    cores share even a single large batch, and what is made ahead is bounded in rows.

    Args:
        begin: Returns the draft of a step, a pure function of it; cheap, because the
            other threads wait for it.
        start: The first step.
        stop: The step after the last.
        rows: Number of rows of each batch.
        row_bytes: Approximate size of a row; it limits how many are made ahead.

    Raises:
        Exception: Whatever `begin` or a draft raised for a step, unchanged, when its
            turn comes; of several failures, that of the first rows.
    """
    units = -(-rows // UNIT)
    drafts: dict[int, Draft] = {}
    failures: dict[int, Exception] = {}
    one_begins = threading.Lock()

    def make(number: np.int64) -> np.int64:
        """Fill one part of a step's batch; whoever comes first begins it."""
        step, unit = divmod(int(number), units)
        try:
            with one_begins:
                if step not in drafts:
                    drafts[step] = begin(step)
                draft = drafts[step]
            draft.fill(slice(unit * UNIT, min(unit * UNIT + UNIT, rows)))
        except Exception as error:
            # TensorFlow would replace it by an error of its own with two stack traces.
            failures[int(number)] = error
        return number

    try:
        for number in _made_ahead(make, start * units, stop * units, units, row_bytes):
            if number in failures:
                raise failures[number]
            step, unit = divmod(number, units)
            if unit == units - 1:
                yield drafts.pop(step).finish()
    finally:
        drafts.clear()  # TensorFlow may keep `make` for longer


def _made_ahead(
    make: Callable[[np.int64], np.int64],
    start: int,
    stop: int,
    units: int,
    row_bytes: int,
) -> Iterator[int]:
    """Yield the numbers of the units [start, stop) in order, each once it is made."""
    tf = tensorflow()
    # A whole batch is made while another one is used, and no core waits for the others.
    wanted = units + 2 * cores()
    ahead = max(1, min(wanted, AHEAD_BYTES // max(1, UNIT * row_bytes)))
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = min(cores(), ahead)
    options.threading.max_intra_op_parallelism = 1
    numbers = tf.data.Dataset.range(start, stop).with_options(options)
    made = numbers.map(
        lambda number: tf.numpy_function(make, [number], tf.int64),
        num_parallel_calls=ahead,
        deterministic=True,
    )
    return map(int, made.as_numpy_iterator())
