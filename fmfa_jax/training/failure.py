# SPDX-License-Identifier: Apache-2.0
"""The end of a run that skipped too many steps in a row, and what is said of it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipeline.loader import BadImages
from fmfa_jax import files
from fmfa_jax.machines.processes import gather
from fmfa_jax.machines.trees import named_leaves, some
from fmfa_jax.methods.method import Method, State
from fmfa_jax.training.judge import BEST
from fmfa_jax.training.session import Session, batches, on_devices
from fmfa_jax.training.step import Report, Step

PAIRS = "not_finite.tsv"


def check_skipped(
    session: Session,
    method: Method,
    compute: Step,
    state: State,
    *,
    step: int,
    saved: Callable[[], Path | None],
) -> None:
    """End the run if more than train.max_skipped steps in a row were skipped.

    The first of them is computed once more, which tells what was not finite. Its pairs
    are listed in the run folder.

    Args:
        session: The run.
        method: What is learned.
        compute: The compiled step.
        state: The state after `step` steps.
        step: The last step done.
        saved: Tells the folder of the newest checkpoint, if there is one.

    Raises:
        FloatingPointError: On all processes alike.
    """
    in_a_row = int(jax.device_get(state["skipped"]["in_a_row"]))
    most = session.settings.train.max_skipped
    if in_a_row <= most:
        return
    first = step - in_a_row + 1
    report, pairs = compute_again(session, method, compute, state, step=first)
    lines = [
        f"not finite after step {first - 1}: {in_a_row} steps in a row had to be "
        f"skipped, train.max_skipped={most}. The first of them, step {first}:"
    ]
    lines += findings(report, list(named_leaves(state["params"])))
    lines += [told_of(session, pairs), *advice(session.workdir, saved())]
    raise FloatingPointError("\n  ".join(lines))


def compute_again(
    session: Session, method: Method, compute: Step, state: State, *, step: int
) -> tuple[Report, list[int]]:
    """What `step` reports, on the host, and the pairs of its global batch.

    Args:
        session: See `check_skipped`.
        method: See `check_skipped`.
        compute: See `check_skipped`.
        state: The state before the step, except for its number; donated.
        step: Number of the step.
    """
    (rows,) = batches(session, step - 1, step, BadImages())
    before = jax.device_put(np.int32(step - 1), state["step"].sharding)
    batch = on_devices(session, method, rows)
    _, report = compute(state | {"step": before}, batch)
    pairs = [pair for part in gather(rows["pair"].tolist()) for pair in part]
    return jax.device_get(report), pairs


def findings(report: Report, names: list[str]) -> list[str]:
    """What was not finite in a step, in a few lines.

    Args:
        report: Of the step, on the host.
        names: Names of the parameters, in the order of the leaves.
    """
    scalars = {key: value for key, value in report.scalars.items() if key != "lr"}
    norm = scalars.pop("grad_norm")
    terms = [name for name, value in scalars.items() if not math.isfinite(value)]
    broken = [name for name, fine in zip(names, report.finite, strict=True) if not fine]
    if not terms and math.isfinite(norm):
        return ["everything is finite when computed again: kernels vary between runs"]
    overflow = "" if math.isfinite(norm) else ", but its norm overflows"
    return [
        f"terms that are not finite: {some(terms) or 'none'}",
        f"gradients that are not finite: {some(broken) or f'none{overflow}'}",
    ]


def told_of(session: Session, pairs: list[int]) -> str:
    """List the pairs of a batch in the run folder; the first of them in a line."""
    split, path = session.data.train, session.workdir / PAIRS
    rows: list[list[Any]] = []
    for number in pairs:
        pair = split.pairs[number]
        rows.append([number, split.images[pair.image].path, pair.caption])
    if session.processes.index == 0:
        files.write_table(path, ("pair", "picture", "caption"), rows)
    number, picture, caption = rows[0]
    return (
        f"pairs: {some(pairs)}; the first is {picture}, {caption!r}; all are in {path}"
    )


def advice(workdir: Path, saved: Path | None) -> list[str]:
    """What to do; names only files that are there."""
    resumes = f"resumes from {saved}" if saved else "starts again: nothing is saved yet"
    best = workdir / BEST
    start = f" with --config.init.path={best}" if best.is_file() else ""
    return [
        f"the same command {resumes}; a larger train.max_skipped lets it go on",
        "a lower optimizer.lr, or an optimizer.clip_norm, makes it another run: start "
        f"that one in another --workdir{start}",
    ]
