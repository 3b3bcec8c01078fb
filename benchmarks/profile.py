# SPDX-License-Identifier: Apache-2.0
r"""Where the time of a training step goes: one traced step, by kind of operation.

    python -m benchmarks.profile                          # ViT-B/16, batch 16, float32
    python -m benchmarks.profile --dtype bfloat16 --trace /tmp/trace

The step is that of `benchmarks.train_step`. `--trace` keeps JAX's trace for Perfetto or
TensorBoard.
"""

import collections
import gzip
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from benchmarks import common, train_step_ours
from benchmarks.train_step_case import add_case, read_sizes, write
from fmfa_jax import models

_LINE = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\S+) ([\w\-]+)\(")
_NAME = re.compile(r'op_name="([^"]*)"')
# Operations that only contain others.
_HOLDERS = ("while", "call", "conditional")


def trace(folder: Path, config: models.ModelConfig, out: Path) -> str:
    """Trace the second step into `out`; return the program as text."""
    step, state, batch = train_step_ours.ready(folder, config)
    state, _ = jax.block_until_ready(step(state, batch))
    with jax.profiler.trace(str(out)):
        jax.block_until_ready(step(state, batch))
    return step.as_text()


def seconds(out: Path) -> dict[str, float]:
    """Return the seconds of each operation in a trace, over all threads."""
    (path,) = out.rglob("*.trace.json.gz")
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    taken: dict[str, float] = collections.defaultdict(float)
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            taken[event["args"]["hlo_op"]] += event["dur"] / 1e6
    return taken


def operations(program: str) -> dict[str, tuple[str, str, str]]:
    """Return each operation's kind, shape, and the name that JAX gave it."""
    found = {}
    for line in program.splitlines():
        if match := _LINE.match(line):
            name, shape, opcode = match.groups()
            origin = _NAME.search(line)
            found[name] = (opcode, shape, origin[1] if origin else "")
    return found


def kind(name: str, operation: tuple[str, str, str]) -> str:
    """Return a few words for what an operation does."""
    opcode, _, origin = operation
    if opcode in ("dot", "custom-call") or origin.endswith("dot_general"):
        return "products of matrices"
    if "transpose" in name or name.startswith("copy"):
        return "copies that transpose an array"
    if name.startswith("wrapped_broadcast"):
        return "filling with zeros"
    if "convert" in name:
        return "casts, alone or with element-wise work"
    if opcode == "fusion" and name.startswith("ynn"):
        return "sums and norms of rows"
    return "element-wise work and the rest"


def report(taken: dict[str, float], program: str, *, top: int, title: str) -> None:
    """Print two tables: by kind, and the longest operations."""
    known = operations(program)
    work = {
        name: spent
        for name, spent in taken.items()
        if name in known and known[name][0] not in _HOLDERS
    }
    whole = sum(work.values())
    kinds: dict[str, float] = collections.defaultdict(float)
    for name, spent in work.items():
        kinds[kind(name, known[name])] += spent
    rows = [
        [name, f"{spent:.2f}", f"{spent / whole:.1%}"]
        for name, spent in sorted(kinds.items(), key=lambda each: -each[1])
    ]
    common.show(f"One step, {title}", ("", "seconds", "share"), rows)
    longest = sorted(work, key=lambda name: -work[name])[:top]
    rows = [
        [name, f"{work[name]:.2f}", known[name][1], known[name][2][-60:]]
        for name in longest
    ]
    header = ("", "seconds", "result", "where it comes from")
    common.show(f"Its {top} longest operations", header, rows)


def main() -> int:
    """Trace a step and print where its time went."""
    parser = common.parser(__doc__)
    add_case(parser)
    parser.set_defaults(batch=16)
    parser.add_argument("--dtype", choices=models.config.DTYPES, default="float32")
    parser.add_argument("--remat", choices=models.config.REMATS, default="full")
    parser.add_argument("--top", type=int, default=12)
    parser.add_argument("--trace", type=Path, help="new folder to keep the trace in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, options)
        sizes: dict[str, Any] = read_sizes(folder)
        config = models.ModelConfig(**sizes, dtype=options.dtype, remat=options.remat)
        out = options.trace or folder / "trace"
        program = trace(folder, config, out)
        title = f"{options.model}, batch {options.batch}, {options.dtype}"
        title += f", remat {options.remat}"
        report(seconds(out), program, top=options.top, title=title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
