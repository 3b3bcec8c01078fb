# SPDX-License-Identifier: Apache-2.0
"""tf.data as a scheduler: batches are made ahead, in parallel, and come in order."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np

Batch = dict[str, np.ndarray]

AHEAD_BYTES = 1 << 30
"""Batches that are being made at a time take about this much memory at most."""


@functools.cache
def tensorflow() -> ModuleType:
    """Import TensorFlow (seconds), hidden from accelerators, whose memory is JAX's."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # It computes nothing here, and would tell of how it computes at every start.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with _hidden("keras"):  # TensorFlow imports it unasked: two fifths of its time
        import tensorflow as tf
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Let a package look absent to what is imported meanwhile."""
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
    make: Callable[[int], Batch],
    *,
    start: int,
    stop: int,
    dtypes: dict[str, type[np.generic]],
    batch_bytes: int,
) -> Iterator[Batch]:
    """Yield make(start), ..., make(stop - 1) in order, made in parallel and ahead.

    The unit of work is a whole batch: Pillow releases the GIL where the time goes, and
    a call into Python per picture would cost a tenth of it.

    Args:
        make: a pure function of the step, called from several threads.
        start: the first step.
        stop: the step after the last.
        dtypes: name and dtype of every array that `make` returns.
        batch_bytes: about the size of a batch, which bounds how many are made at once.

    Raises:
        Exception: what `make` raised for a step, as it was, when its turn comes.
    """
    tf = tensorflow()
    failures: dict[int, Exception] = {}

    def run(step: np.int64) -> list[np.ndarray]:
        try:
            made = make(int(step))
            return [made[name] for name in dtypes]
        except Exception as error:
            # TensorFlow would turn it into a message of its own with two stacks.
            failures[int(step)] = error
            return [np.empty(0, dtype) for dtype in dtypes.values()]

    kinds = [tf.as_dtype(dtype) for dtype in dtypes.values()]
    workers = max(1, min(cores(), AHEAD_BYTES // max(1, batch_bytes)))
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = workers
    options.threading.max_intra_op_parallelism = 1
    steps = tf.data.Dataset.range(start, stop).with_options(options)
    batches = steps.map(
        lambda step: tf.numpy_function(run, [step], kinds),
        num_parallel_calls=workers,
        deterministic=True,
    ).prefetch(1)
    for step, arrays in enumerate(batches.as_numpy_iterator(), start):
        if step in failures:
            raise failures[step]
        yield dict(zip(dtypes, arrays, strict=True))
