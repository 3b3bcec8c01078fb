# SPDX-License-Identifier: Apache-2.0
"""How fast pictures are decoded on the host, and a step that is fed with them.

A pool of threads takes the place of tf.data, which need not be installed here; what a
thread does for a picture is what the loader does.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import common
from benchmarks.accelerator.run import Run
from benchmarks.accelerator.step import base
from benchmarks.loader import write_pictures
from benchmarks.train_step_case import make_batch
from data_pipeline.images import load

THREADS = (1, 4, 8, 16)
Rows = dict[str, np.ndarray]


def fed(run: Run) -> None:
    """Measure decoding by threads, then steps fed in four ways."""
    folder = run.folder / "pictures"
    folder.mkdir()
    write_pictures(folder, run.sizes.pictures)
    paths = sorted(folder.glob("*.jpg"))
    case = base(run)
    whole = case.build(run)
    size = whole.method.model.image_size
    for threads in THREADS:
        run.measure(
            f"decoded by {threads} threads", lambda n=threads: _decoding(paths, size, n)
        )
    rows = make_batch(vars(whole.method.model), case.batch)
    state = whole.state()
    program = whole.lower(case.batch).compile()
    held = {"state": state}

    def step(batch: Any) -> Any:
        held["state"], measured = program(held["state"], batch)
        return measured

    jax.block_until_ready(step(whole.batch(rows)))
    with ThreadPoolExecutor(max(THREADS)) as pool:
        pixels = np.stack(list(pool.map(lambda path: load(path, size), paths)))

        def read(index: int) -> np.ndarray:
            return load(paths[index], size)

        ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "from the files": lambda ids: np.stack(list(pool.map(read, ids))),
            "from decoded pictures": lambda ids: pixels[ids],
            "from one batch on the host": lambda ids: rows["image"],
        }
        for name, images in ways.items():
            source = _batches(rows, images, len(paths))
            run.measure(
                f"step fed {name}",
                lambda s=source: _steps(step, map(whole.batch, s), case.batch, run),
            )
    batch = whole.batch(rows)
    run.measure(
        "step fed from one batch on the device",
        lambda: _steps(step, itertools.repeat(batch), case.batch, run),
    )


def _decoding(paths: list[Path], size: tuple[int, int], threads: int) -> dict[str, Any]:
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        count = sum(1 for _ in pool.map(lambda path: load(path, size), paths))
        return {"pictures/s": count / (time.perf_counter() - start)}


def _batches(rows: Rows, images: Any, count: int) -> Iterator[Rows]:
    """Yield batches of changing pictures; the next is made while one is trained on."""
    rng = np.random.default_rng(0)

    def make() -> Rows:
        return rows | {"image": images(rng.integers(0, count, len(rows["image"])))}

    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(make)
        while True:
            batch = following.result()
            following = ahead.submit(make)
            yield batch


def _steps(step: Any, batches: Iterator[Any], size: int, run: Run) -> dict[str, Any]:
    common.seconds(lambda: step(next(batches)))
    seconds = common.seconds(lambda: step(next(batches)), 3 * run.sizes.steps)
    return {"ms": 1e3 * seconds, "pictures/s": size / seconds}
