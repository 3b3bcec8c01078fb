# SPDX-License-Identifier: Apache-2.0
r"""A whole training step of FMFA: ours versus the released one in eager PyTorch.

    python -m benchmarks.train_step                       # CPU: ViT-B/16, batch 16
    python -m benchmarks.train_step --model vit-l-14      # GPU: batch 256, bfloat16
    python -m benchmarks.train_step --layers 2 --steps 1  # a quick look

Forward pass, A-SDM + ID + IRR + EFA, backward pass and Adam, at 384 x 128 pixels and 77
tokens, with the same random weights and the same masked batch. The peer
(benchmarks/peers/, which a test holds to the official numbers) computes what the
released step computes: two text passes, vocabulary scores for all 77 positions, and EFA
for all pairs at once. Ours computes the same losses; the table shows how far apart the
two are. Each candidate runs in its own process, the processes take turns, and medians
are shown. Our programs are compiled beforehand, since run.compilation_cache keeps them
from run to run.
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.train_step_case import add_case, case_flags

PARITY = 1e-2
OURS, PEER = "benchmarks.train_step_ours", "benchmarks.peers.train_step"
REFERENCE = "torch float32"


@dataclass(frozen=True)
class Candidate:
    """An engine at one precision."""

    module: str
    dtype: str
    remat: str = ""
    tf32: str = ""

    @property
    def flags(self) -> list[str]:
        """Flags for its child."""
        given = {"--dtype": self.dtype, "--remat": self.remat, "--tf32": self.tf32}
        return [part for flag in given.items() if flag[1] for part in flag]


CANDIDATES = {
    REFERENCE: Candidate(PEER, "float32", tf32="off"),
    "torch float32, TF32": Candidate(PEER, "float32", tf32="on"),
    "torch bfloat16 autocast": Candidate(PEER, "bfloat16"),
    "ours float32": Candidate(OURS, "float32", "none"),
    "ours float32, elementwise": Candidate(OURS, "float32", "elementwise"),
    "ours float32, remat": Candidate(OURS, "float32", "full"),
    "ours bfloat16": Candidate(OURS, "bfloat16", "none"),
    "ours bfloat16, elementwise": Candidate(OURS, "bfloat16", "elementwise"),
    "ours bfloat16, remat": Candidate(OURS, "bfloat16", "full"),
}
ON_CPU = (REFERENCE, "torch bfloat16 autocast", "ours float32, remat")
ON_CPU += ("ours bfloat16, remat",)
ON_GPU = ("torch bfloat16 autocast", "torch float32, TF32")
ON_GPU += tuple(name for name in CANDIDATES if name.startswith("ours bfloat16"))


def main() -> int:
    """Print the table of all candidates that did not fail; return whether one did."""
    parser = common.parser(__doc__)
    add_case(parser)
    parser.add_argument("--only", nargs="*", choices=CANDIDATES, metavar="CANDIDATE")
    parser.add_argument("--steps", type=int, default=3, help="timed, in each process")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each")
    options = parser.parse_args()
    gpu = bool(common.accelerators())
    options.batch = options.batch or (256 if gpu else 16)
    names = options.only or (ON_GPU if gpu else ON_CPU)
    with tempfile.TemporaryDirectory() as folder:
        common.child("benchmarks.train_step_case", folder, *case_flags(options))
        found = measure(Path(folder), names, options)
        report(found, options)
    return int(len(found["runs"]) < len(names))


def measure(folder: Path, names: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Ask every child, the candidates taking turns."""
    counts = {
        module: common.child(module, str(folder), "flops") for module in (OURS, PEER)
    }
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}

    def ask(one: Candidate, *task: str) -> dict[str, Any]:
        arguments = (str(folder), *task, *one.flags)
        return common.child(one.module, *arguments, environment=cache)

    def train(name: str) -> dict[str, Any]:
        return ask(CANDIDATES[name], "steps", *common.flags(options, "steps"))

    def compile_first(name: str) -> float:
        ours = CANDIDATES[name].module == OURS
        return ask(CANDIDATES[name], "compile")["seconds"] if ours else 0.0

    compiled = common.take_turns(names, compile_first, repeats=1)
    runs = common.take_turns(compiled, train, repeats=options.repeats)
    gaps = apart(folder, runs)
    took = [seconds for (seconds,) in compiled.values() if seconds]
    return {"counts": counts, "compiled": took, "runs": runs, "apart": gaps}


def apart(folder: Path, runs: dict[str, list[dict]]) -> dict[str, Any]:
    """Return the largest relative distances of features, losses and gradient to torch.

    The reference is torch in float32.
    """
    outputs = common.take_turns(
        {REFERENCE, *runs}, lambda name: _features(folder, CANDIDATES[name]), repeats=1
    )
    (wanted,) = outputs.get(REFERENCE, [{}])
    first = {name: found[0]["first"] for name, found in runs.items()}
    rows: dict[str, dict[str, float]] = {}
    for name in runs:
        (found,) = outputs.get(name, [{}])
        gaps = [_distance(found[key], wanted[key]) for key in found.keys() & wanted]
        rows[name] = {"features": max(gaps)} if gaps else {}
        # If the reference is not in the table, only the features can be compared.
        for key, value in first.get(REFERENCE, {}).items():
            kind = "gradient" if key == "grad_norm" else "losses"
            gap = abs(first[name][key] - value) / abs(value)
            rows[name][kind] = max(gap, rows[name].get(kind, 0.0))
    return rows


def _features(folder: Path, one: Candidate) -> dict[str, np.ndarray]:
    answer = common.child(one.module, str(folder), "features", *one.flags)
    with np.load(answer["features"], allow_pickle=False) as file:
        return dict(file)


def _distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def report(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the children's answers as a table."""
    speeds = {name: common.medians(runs) for name, runs in found["runs"].items()}
    base = next(iter(speeds))
    rows = [_row(name, speeds, found, options.batch, base) for name in speeds]
    header = ("", "pairs/s", "ms a step", f"x {base}", "CPU s", "peak GB", "x peak")
    header += ("GFLOP/pair", "GFLOP/s", "MFU", "features", "losses", "gradient")
    layers = f", {options.layers} layers" if options.layers else ""
    common.show(
        f"Training step, {options.model}{layers}, batch {options.batch}",
        header,
        rows,
        notes=_notes(found, options),
    )


def _row(
    name: str,
    speeds: dict[str, dict[str, float]],
    found: dict[str, Any],
    batch: int,
    base: str,
) -> tuple[str, ...]:
    seconds, memory = speeds[name]["seconds"], speeds[name]["peak_gb"]
    ours = found["counts"][OURS]
    work = found["counts"][CANDIDATES[name].module]["flops"]
    peak = ours["peak_flops"]
    # Relative to the necessary work, which is our count, whoever does it.
    used = f"{ours['flops'] / seconds / peak:.1%}" if peak else "-"
    gaps = found["apart"][name]
    return (
        name,
        f"{batch / seconds:.2f}",
        f"{1e3 * seconds:.0f}",
        f"{speeds[base]['seconds'] / seconds:.2f}",
        f"{speeds[name]['cpu_seconds']:.1f}",
        f"{memory:.2f}",
        f"{memory / speeds[base]['peak_gb']:.2f}",
        f"{work / batch / 1e9:.1f}",
        f"{work / seconds / 1e9:.0f}",
        used,
        *(_gap(gaps.get(kind)) for kind in ("features", "losses", "gradient")),
    )


def _gap(gap: float | None) -> str:
    if gap is None:
        return "-"
    return f"{gap:.0e}" if gap < PARITY else f"{gap:.0e} FAR"


def _notes(found: dict[str, Any], options: argparse.Namespace) -> list[str]:
    ours, peer = found["counts"][OURS], found["counts"][PEER]
    pair = 1e9 * options.batch
    notes = [
        f"GFLOP per pair and step: ours {ours['flops'] / pair:.1f} by count_flops;"
        f" torch {peer['flops'] / pair:.1f} by FlopCounterMode; ratio"
        f" {ours['flops'] / peer['flops']:.3f}. Recomputation by remat is not counted.",
        "features, losses, gradient: largest relative distance to torch's float32 of"
        " the global features (norm-wise), of A-SDM, ID, IRR, EFA and their sum, and of"
        f" the gradient's norm, at the first step; FAR: beyond {PARITY}.",
        "torch bfloat16: forward pass under torch.autocast, losses in float32; ours"
        " bfloat16: bfloat16 products summed in float32, losses in float32. Weights"
        " and Adam's moments are always float32. Peak: of the accelerator's memory if"
        " there is one, otherwise of the process. CPU s: per step, over all cores; it"
        " shows whether the machine had other work.",
    ]
    if found["compiled"]:
        notes.append(
            "Starting and compiling ours took"
            f" {statistics.median(found['compiled']):.0f} s in an earlier process: the"
            " compiler's memory is not part of the peak."
        )
    return notes


if __name__ == "__main__":
    sys.exit(main())
