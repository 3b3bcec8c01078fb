# SPDX-License-Identifier: Apache-2.0
r"""Where the time of a training step goes: one traced step, by kind of operation.

    python -m benchmarks.profile                          # ViT-B/16, batch 16, float32
    python -m benchmarks.profile --dtype bfloat16 --trace /tmp/trace

The step is FMFA's, with all four losses. `--trace` keeps JAX's trace for Perfetto or
TensorBoard. On a GPU, XLA_FLAGS=--xla_gpu_enable_command_buffer= keeps CUDA graphs from
hiding which operation a kernel belongs to.
"""

import collections
import gzip
import json
import re
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from benchmarks import common
from benchmarks.train_step_case import add_case, make_batch
from benchmarks.whole_step import WholeStep, build, sized
from fmfa_jax import models

_LINE = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\(")
_NAME = re.compile(r'op_name="([^"]*)"')
# What a custom call or a fusion of the GPU's compiler is.
_TARGET = re.compile(r'custom_call_target="([^"]*)"|"kind":"(__\w+[$\w]*)"')
_WIDE = re.compile(r"stablehlo\.dot_general.*: \((tensor<\w*f32>), (tensor<\w*f32>)\)")
# Operations that only contain others.
_HOLDERS = ("while", "call", "conditional")
_BETWEEN_DEVICES = ("all-", "reduce-scatter", "collective-", "send", "recv")


@dataclass(frozen=True)
class Operation:
    """An operation of XLA's program.

    Attributes:
        opcode: XLA's word for what it is.
        shape: Of its result.
        origin: The name that JAX gave it.
        target: The library or code generator that computes it; "" on a CPU.
    """

    opcode: str
    shape: str
    origin: str
    target: str


@dataclass(frozen=True)
class Profile:
    """One traced step.

    Attributes:
        taken: Seconds of each operation, over all threads.
        operations: The program's operations.
        lowered: The program before XLA compiled it.
    """

    taken: dict[str, float]
    operations: dict[str, Operation]
    lowered: str

    @cached_property
    def work(self) -> dict[str, float]:
        """Seconds of each operation that does something itself."""
        return {
            name: spent
            for name, spent in self.taken.items()
            if name in self.operations and self.operations[name].opcode not in _HOLDERS
        }

    @property
    def whole(self) -> float:
        """Seconds of all of them."""
        return sum(self.work.values())

    def kinds(self) -> list[dict[str, Any]]:
        """Seconds and share of each kind, the longest first."""
        kinds: dict[str, float] = collections.defaultdict(float)
        for name, spent in self.work.items():
            kinds[kind(name, self.operations[name])] += spent
        names = sorted(kinds, key=lambda name: -kinds[name])
        return [{"name": n} | self._spent(kinds[n]) for n in names]

    def longest(self, top: int) -> list[dict[str, Any]]:
        """The longest operations, their results, and where they come from."""
        names = sorted(self.work, key=lambda name: -self.work[name])[:top]
        rows = []
        for name in names:
            one = self.operations[name]
            about = {"result": one.shape, "where it comes from": one.origin[-60:]}
            rows.append({"name": name} | self._spent(self.work[name]) | about)
        return rows

    def wide_products(self) -> list[dict[str, Any]]:
        """Products whose operands are both float32, and how often each is written."""
        found = collections.Counter(_WIDE.findall(self.lowered))
        return [
            {"name": f"{a} x {b}", "products": n} for (a, b), n in found.most_common()
        ]

    def _spent(self, seconds: float) -> dict[str, float]:
        return {"seconds": seconds, "share %": 100 * seconds / self.whole}


def trace(whole: WholeStep, batch: int, out: Path) -> Profile:
    """Trace the second step into `out`."""
    state = whole.state()
    rows = whole.batch(make_batch(vars(whole.method.model), batch))
    lowered = whole.function(state).lower(state, rows)
    step = lowered.compile()
    state, _ = jax.block_until_ready(step(state, rows))
    with jax.profiler.trace(str(out)):
        jax.block_until_ready(step(state, rows))
    (path,) = out.rglob("*.trace.json.gz")
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    return Profile(seconds(events), operations(step.as_text()), lowered.as_text())


def seconds(events: list[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of each operation in a trace, over all threads.

    A GPU's kernels are on the lines of its streams; other lines repeat them.
    """
    streams = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name"
        and event["args"]["name"].startswith("Stream")
    }
    taken: dict[str, float] = collections.defaultdict(float)
    for event in events:
        if event.get("ph") != "X" or "hlo_op" not in event.get("args", {}):
            continue
        if not streams or (event["pid"], event["tid"]) in streams:
            taken[event["args"]["hlo_op"]] += event["dur"] / 1e6
    return taken


def operations(program: str) -> dict[str, Operation]:
    """Return the operations of a compiled program's text."""
    found = {}
    for line in program.splitlines():
        if match := _LINE.match(line):
            name, shape, opcode = match.groups()
            origin, target = _NAME.search(line), _TARGET.search(line)
            found[name] = Operation(
                opcode,
                shape,
                origin[1] if origin else "",
                (target[1] or target[2]) if target else "",
            )
    return found


def kind(name: str, operation: Operation) -> str:
    """Return a few words for what an operation does."""
    opcode, target = operation.opcode, operation.target
    if "fmha" in target:
        return "attention in cuDNN"
    if opcode.startswith(_BETWEEN_DEVICES) or "nccl" in name:
        return "between devices"
    if opcode in ("dot", "convolution", "custom-call") or "gemm" in target:
        return "products of matrices"
    if operation.origin.endswith("dot_general"):
        return "products of matrices"
    if "transpose" in name or opcode.startswith("copy") or name.startswith("copy"):
        return "copies that transpose an array"
    if name.startswith("wrapped_broadcast"):
        return "filling with zeros"
    if "convert" in name:
        return "casts, alone or with element-wise work"
    if opcode == "fusion" and (name.startswith("ynn") or "reduce" in name):
        return "sums and norms of rows"
    return "element-wise work and the rest"


def _show(title: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        cells = [list(map(common.cell, row.values())) for row in rows]
        common.show(title, ("", *list(rows[0])[1:]), cells)


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
    config = sized(
        options.model,
        layers=options.layers,
        dtype=options.dtype,
        remat=options.remat,
        sizes={"classes": options.classes, "irr_layers": options.irr_layers},
    )
    whole = build(config, batch=options.batch, pairs=options.batch)
    with tempfile.TemporaryDirectory() as name:
        found = trace(whole, options.batch, options.trace or Path(name) / "trace")
    title = f"{options.model}, batch {options.batch}, {options.dtype}"
    _show(f"One step, {title}, remat {options.remat}", found.kinds())
    _show(f"Its {options.top} longest operations", found.longest(options.top))
    if options.dtype == "bfloat16":
        _show("Its products of float32 operands", found.wide_products())
    return 0


if __name__ == "__main__":
    sys.exit(main())
