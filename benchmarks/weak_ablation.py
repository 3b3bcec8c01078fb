# SPDX-License-Identifier: Apache-2.0
"""Ablation of the weak method on drawn people: what each loss adds, over three seeds.

    python -m benchmarks.weak_ablation --workdir runs/ablation

Trains five sets of losses from one start (itc; plus local; plus global; plus both; plus
view consistency, which is the full method), the supervised presets on the same people,
the presets weak-paper and weak-plus, and each option of weak-plus alone. Finished runs
are not repeated. Prints the paper's R1 beside ours and draws the precision of the mined
links. Not part of `make bench`: each run takes two minutes.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import common
from fmfa_jax.figures import plots

SEEDS = (0, 1, 2)
# Few people, several epochs and a low learning rate, as CLIP is fine-tuned on the
# published data sets: pretraining can be forgotten, and there are identities to find.
SETTING = {
    "data.root": "data/ablation",
    "data.tokenizer": "data/ablation/tokenizer",
    "data.options.identities": 400,
    "data.options.val_identities": 200,
    "data.options.test_identities": 300,
    "optimizer.lr": 1e-4,
    "train.epochs": 8,
    "eval.every_epochs": 8,
    "eval.pictures": 0,
    "checkpoint.every_epochs": 1000,
    "log.tensorboard": False,
}
OFF = {name: {f"losses['{name}']": 0} for name in ("local", "global", "consistency")}


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
        preset: Preset of configs/demo.py.
        changes: Config keys that differ from the preset.
        paper: Published R1 on CUHK-PEDES, ICFG-PEDES and RSTPReid.
    """

    preset: str
    changes: Mapping[str, object]
    paper: str = ""


ARMS = {
    "itc": Arm(
        "weak",
        OFF["local"] | OFF["global"] | OFF["consistency"],
        "64.69 / 54.24 / 54.60",
    ),
    "+local": Arm("weak", OFF["global"] | OFF["consistency"], "69.04 / 58.45 / 56.30"),
    "+global": Arm("weak", OFF["local"] | OFF["consistency"], "67.56 / 58.51 / 55.90"),
    "+both": Arm("weak", OFF["consistency"], "70.20 / 60.30 / 57.25"),
    "full": Arm("weak", {}, "73.06 / 63.71 / 61.30"),
    "supervised official": Arm("official", {}),
    # As measured, which was before `plus` hid padding from IRR.
    "supervised plus": Arm("plus", {"loss.mlm_rule": "official"}),
    "weak-paper": Arm("weak-paper", {}),
    "weak-plus": Arm("weak-plus", {}),
    "exclude=self": Arm("weak", {"weak.exclude": "self"}),
    "targets=union": Arm("weak", {"weak.targets": "union"}),
    "same_image=linked": Arm("weak", {"weak.same_image": "linked"}),
}


def folder(workdir: Path, arm: str, seed: int) -> Path:
    """Return the folder of a run."""
    return workdir / f"{arm.replace(' ', '-')}-{seed}"


def command(workdir: Path, arm: str, seed: int) -> list[str]:
    """Return the command that trains an arm, as a user would type it."""
    changes = SETTING | {"seed": seed} | dict(ARMS[arm].changes)
    return [
        sys.executable,
        "main.py",
        f"--config=configs/demo.py:{ARMS[arm].preset}",
        f"--workdir={folder(workdir, arm, seed)}",
        *(f"--config.{key}={value}" for key, value in changes.items()),
    ]


def train(workdir: Path, arms: Sequence[str], seeds: Sequence[int]) -> None:
    """Run whatever has not finished; interrupted runs resume."""
    for seed in seeds:
        for arm in arms:
            run = folder(workdir, arm, seed)
            if not final_figures(run):
                print(f"{arm}, seed {seed} -> {run}", flush=True)
                with (workdir / f"{run.name}.log").open("w") as log:
                    subprocess.run(
                        command(workdir, arm, seed),
                        cwd=common.ROOT,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        check=True,
                    )


def final_figures(run: Path) -> dict[str, float] | None:
    """Return a finished run's text-to-image figures on the test people, or None."""
    found = [p for p in run.glob("eval/*/metrics.json") if p.parent.name.isdigit()]
    last = max(found, key=lambda p: int(p.parent.name), default=None)
    return json.loads(last.read_text())["t2i"] if last else None


def row(workdir: Path, arm: str) -> list[str] | None:
    """Return an arm's row of the table, or None before its first run has finished."""
    found = [final_figures(folder(workdir, arm, seed)) for seed in SEEDS]
    figures = [each for each in found if each]
    if not figures:
        return None
    r1 = [each["r1"] for each in figures]
    spread = f"{statistics.stdev(r1):.2f}" if len(r1) > 1 else "-"
    means = [statistics.mean(each[k] for each in figures) for k in ("mAP", "mINP")]
    last = [points[-1][1] for s in SEEDS if (points := mined(workdir, arm, s))]
    return [
        arm,
        " ".join(f"{value:.2f}" for value in r1),
        f"{statistics.mean(r1):.2f}",
        spread,
        *(f"{value:.2f}" for value in means),
        f"{statistics.mean(last):.0f} %" if last else "",
        ARMS[arm].paper,
    ]


def mined(workdir: Path, arm: str, seed: int) -> list[tuple[float, float]]:
    """Return epochs and precisions of a run's mined links; empty if there are none."""
    log = folder(workdir, arm, seed) / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    return [
        (row["epoch"], 100 * row["mined_precision"])
        for row in map(json.loads, lines)
        if row.get("mined_precision") is not None
    ]


def draw(workdir: Path, path: Path) -> None:
    """Draw the precision of the full method's mined links over the epochs."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for seed in SEEDS:
        if points := mined(workdir, "full", seed):
            epochs, values = zip(*points, strict=True)
            plots.line(
                axes, list(epochs), list(values), number=seed, name=f"seed {seed}"
            )
    axes.set_xlabel("epoch")
    axes.set_ylabel("mined links of the same person, %")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend()
    plots.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print the table and draw the figure."""
    parser = common.parser(__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, choices=SEEDS, default=SEEDS)
    given = parser.parse_args(arguments)
    given.workdir.mkdir(parents=True, exist_ok=True)
    train(given.workdir, given.arms, given.seeds)
    rows = [line for arm in ARMS if (line := row(given.workdir, arm))]
    header = ("losses", "R1 by seed", "mean", "spread", "mAP", "mINP")
    common.show(
        "The weak method on 400 drawn people",
        (*header, "links", "the paper's R1, CUHK / ICFG / RSTP"),
        rows,
        notes=(
            "text to image, percent, 300 unseen people, 2400 captions, 1200 pictures;",
            "spread: standard deviation; links: final precision of the mined links",
        ),
    )
    draw(given.workdir, given.workdir / "mined_precision.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
