# SPDX-License-Identifier: Apache-2.0
"""The parts of the check that other benchmarks measure."""

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks import attention, profile, train_step_case
from benchmarks.accelerator.run import Row, Run
from benchmarks.accelerator.step import base

PEERS = {
    "bfloat16 autocast, TF32 losses": ("--dtype", "bfloat16"),
    "float32 with TF32": ("--dtype", "float32"),
}
MINERS = {"ours": "mining", "dense, JAX": "dense", "dense, torch": "torch"}


def peer(run: Run) -> None:
    """Time the released step in torch, which takes flash attention by itself."""
    sizes = run.sizes
    case = Namespace(
        model=sizes.model,
        layers=sizes.layers,
        batch=max(sizes.peer_batches),
        classes=train_step_case.CLASSES,
        irr_layers=sizes.layers or train_step_case.IRR_LAYERS,
    )
    folder = run.folder / "case"
    folder.mkdir()
    # JAX would keep the card's memory.
    flags = train_step_case.case_flags(case)
    run.child(
        "benchmarks.train_step_case",
        str(folder),
        *flags,
        environment={"JAX_PLATFORMS": "cpu"},
    )
    steps = ("--steps", str(run.sizes.steps))
    for batch in sizes.peer_batches:
        for name, dtype in PEERS.items():
            flags = (str(folder), "steps", *steps, "--rows", str(batch), *dtype)

            def row(flags: Any = flags, batch: int = batch) -> dict[str, Any]:
                found = run.child("benchmarks.peers.train_step", *flags)
                return _beside_ours(run, batch, found)

            run.measure(f"torch, {name}, batch {batch}", row)


def _beside_ours(run: Run, batch: int, found: dict[str, Any]) -> Row:
    seconds = found["seconds"]
    row = {"batch": batch, "ms": 1e3 * seconds, "pairs/s": batch / seconds}
    row["peak GB"] = found["peak_gb"]
    same = [
        ours
        for ours in run.rows("step")
        if ours.get("batch") == batch and "error" not in ours
    ]
    if not same:
        return row
    ours = min(same, key=lambda each: each["ms"])
    return row | {
        "ours, ms": ours["ms"],
        "remat of ours": ours["remat"],
        "ours, times its pairs/s": row["ms"] / ours["ms"],
        "ours, of its memory": ours["program GB"] / found["peak_gb"],
    }


def profiled(run: Run) -> None:
    """Trace one step: what takes how long, and what multiplies in float32."""
    case = base(run)
    whole = case.build(run)

    def trace() -> profile.Profile:
        with tempfile.TemporaryDirectory() as name:
            return profile.trace(whole, case.batch, Path(name))

    if (found := run.attempt("the trace", trace)) is None:
        return
    run.append({"case": "all operations", "seconds": found.whole})
    tables = {"": found.kinds(), "operation ": found.longest(10)}
    if whole.method.model.dtype == "bfloat16":
        tables["float32 "] = found.wide_products()
    for title, rows in tables.items():
        for row in rows:
            run.append({"case": title + row.pop("name")} | row)


def attention_alone(run: Run) -> None:
    """Time every attention that the step has, and compare with float64."""
    for shape in attention.SHAPES.values():
        for dtype in attention.LIMITS:
            found = run.attempt(
                f"{dtype}, {shape}",
                lambda shape=shape, dtype=dtype: attention.compare(
                    shape, dtype, batch=run.sizes.tokens, repeats=3
                ),
            )
            for name, row in (found or {}).items():
                run.append({"case": name} | row)


def mining(run: Run) -> None:
    """Time mining beside a dense top-k."""
    for rows in run.sizes.rows:
        for name, candidate in MINERS.items():
            flags = ("--rows", str(rows), "--only", candidate)

            def row(flags: Any = flags) -> dict[str, Any]:
                """Measure mining with these flags, in a process of its own."""
                found = run.child("benchmarks.mining", *flags)
                names = {"seconds": "ms", "peak_gb": "peak GB", "bank_gb": "banks GB"}
                return {
                    head: found[key] * (1e3 if head == "ms" else 1)
                    for key, head in names.items()
                }

            run.measure(f"{rows} rows, {name}", row)
