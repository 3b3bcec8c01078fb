# SPDX-License-Identifier: Apache-2.0
"""Batches made ahead of their use, in parallel and in order, by tf.data."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np

Batch = dict[str, np.ndarray]

AHEAD_BYTES = 1 << 30
"""Approximate limit on the memory of the batches being made at a time."""


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
    make: Callable[[int], Batch],
    *,
    start: int,
    stop: int,
    dtypes: dict[str, type[np.generic]],
    batch_bytes: int,
) -> Iterator[Batch]:
    """Yield make(start), ..., make(stop - 1) in order, made ahead and in parallel.

    The unit of work is a whole batch: Pillow releases the GIL where the time goes, and
    one call into Python per picture would take a tenth of the time.

    Args:
        make: Pure function of the step, called from several threads.
        start: The first step.
        stop: The step after the last.
        dtypes: Name and dtype of every array that `make` returns.
        batch_bytes: Approximate size of a batch; it limits how many are made at once.

    Raises:
        Exception: Whatever `make` raised for a step, unchanged, when its turn comes.
    """
    tf = tensorflow()
    failures: dict[int, Exception] = {}

    def run(step: np.int64) -> list[np.ndarray]:
        try:
            made = make(int(step))
            return [made[name] for name in dtypes]
        except Exception as error:
            # TensorFlow would replace it by an error of its own with two stack traces.
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
