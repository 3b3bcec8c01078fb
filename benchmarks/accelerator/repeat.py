# SPDX-License-Identifier: Apache-2.0
r"""Do equal steps give equal bits, in two processes and after a resume?

    python -m benchmarks.accelerator.repeat FOLDER --stop 5 [--save]

trains in a process of its own, from the newest checkpoint in FOLDER if there is one.
"""

import functools
import hashlib
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import common
from benchmarks.accelerator.run import Run
from benchmarks.accelerator.step import base
from benchmarks.train_step_case import make_batch
from fmfa_jax.run.checkpoints import Checkpoints

STEPS, SAVED = 5, 3
DETERMINISTIC = "--xla_gpu_exclude_nondeterministic_ops=true"
MODES = {
    "default": ("", ("first", "second")),
    "deterministic": (DETERMINISTIC, ("first", "second", "resumed")),
}
"""XLA's flag, and the runs that it is given to."""


def twice(run: Run) -> None:
    """Train five steps twice in either mode, and once more with a stop after three."""
    for mode, (flag, names) in MODES.items():
        first: dict[str, Any] = {}
        for name in names:
            folder = run.folder / f"{mode}-{name}"
            row = functools.partial(_row, run, folder, flag, first)
            run.measure(f"{mode}, {name}", row)


def _row(run: Run, folder: Path, flag: str, first: dict[str, Any]) -> dict[str, Any]:
    if folder.name.endswith("resumed"):
        _child(run, folder, flag, SAVED)
    found = _child(run, folder, flag, STEPS)
    # The first run of a mode is what the others are compared with.
    first.update(first or found)
    return _beside(found, first)


def _child(run: Run, folder: Path, flag: str, stop: int) -> dict[str, Any]:
    flags = ["--stop", str(stop), *["--cpu"] * run.cpu, *["--save"] * (stop < STEPS)]
    return run.child(
        "benchmarks.accelerator.repeat",
        str(folder),
        *flags,
        environment=common.xla_flags(flag),
    )


def _beside(found: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    last, wanted = found["losses"][-1], first["losses"][-1]
    return {
        "ms": 1e3 * found["seconds"],
        "last loss": last,
        "losses apart": abs(last / wanted - 1),
        "norms of weights apart": max(
            abs(a / b - 1)
            for a, b in zip(found["norms"], first["norms"], strict=True)
            if b
        ),
        "weights": "equal bits" if found["digest"] == first["digest"] else "other bits",
    }


def train(run: Run, folder: Path, *, stop: int, save: bool) -> dict[str, Any]:
    """Train to step `stop`; return losses, seconds, and a digest of the weights."""
    case = base(run, batch=min(run.sizes.batches))
    whole = case.build(run)
    state = whole.state()
    batch = whole.batch(make_batch(vars(whole.method.model), case.batch))
    step = whole.function(state)
    losses, times = [], []
    with Checkpoints(folder, identity={"case": case.name}) as kept:
        if (found := kept.restore_latest(state)) is not None:
            state = found.state
        while int(state["step"]) < stop:
            start = time.perf_counter()
            state, measured = jax.block_until_ready(step(state, batch))
            times.append(time.perf_counter() - start)
            losses.append(float(measured.scalars["total"]))
        if save:
            kept.save(stop, state)
    leaves = [np.asarray(x) for x in jax.tree.leaves(state["params"])]
    digest = hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves))
    return {
        "losses": losses,
        # The first one compiles.
        "seconds": statistics.median(times[1:] or times),
        "norms": [float(np.linalg.norm(leaf.astype(np.float64))) for leaf in leaves],
        "digest": digest.hexdigest(),
    }


def main() -> None:
    """Train as one child of `twice`."""
    parser = common.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stop", type=int, default=STEPS)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    run = Run("repeat", options.folder, options.folder, options.cpu, float("inf"))
    common.answer(train(run, options.folder, stop=options.stop, save=options.save))


if __name__ == "__main__":
    main()
