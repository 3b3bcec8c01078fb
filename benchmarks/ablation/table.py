# SPDX-License-Identifier: Apache-2.0
"""What the runs came to: means, deviations, and paired differences to one row."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from scipy import stats

from benchmarks.ablation.rows import ROWS
from benchmarks.ablation.runs import Figures, Run
from fmfa_jax import files, plots

HEADER = (
    "row",
    "noise",
    "R1 of the last weights, by seed",
    "mean",
    "spread",
    "best",
    "mAP",
    "mINP",
    "difference in R1",
    "in mAP",
    "published R1",
)
KEYS = ("start", "row", "changes", "noise", "seed", "digest")
SIZES = ("queries", "gallery")
METRICS = ("r1", "r5", "r10", "mAP", "mINP", *SIZES)
Key = tuple[str, int]


def grouped(runs: Sequence[Run]) -> dict[Key, dict[int, Run]]:
    """The finished runs: (row, noise) -> seed -> run."""
    found: dict[Key, dict[int, Run]] = {}
    for run in runs:
        if run.figures():
            found.setdefault((run.row, run.noise), {})[run.seed] = run
    return found


def values(runs: Mapping[int, Run], metric: str, weights: str = "last") -> list[float]:
    """A metric, in the order of the seeds."""
    return [runs[seed].figures()[weights][metric] for seed in sorted(runs)]


def difference(
    runs: Mapping[int, Run], baseline: Mapping[int, Run], metric: str = "r1"
) -> str:
    """Mean paired difference over the seeds of both, with its 95 % interval.

    Student's t of the differences seed by seed: both saw the same people in the same
    order. Of a single seed there is no interval.
    """
    seeds = sorted(runs.keys() & baseline.keys())
    if not seeds or runs is baseline:
        return ""
    gaps = [
        values({s: runs[s]}, metric)[0] - values({s: baseline[s]}, metric)[0]
        for s in seeds
    ]
    mean = statistics.mean(gaps)
    if len(gaps) < 2:
        return f"{mean:+.2f}"
    reach = stats.t.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps)
    return f"{mean:+.2f} ± {reach / len(gaps) ** 0.5:.2f}"


def lines(runs: Sequence[Run], baseline: str) -> list[tuple[str, ...]]:
    """The table's rows, under `HEADER`.

    Args:
        runs: Those that have not finished are left out.
        baseline: Row that the others are compared with, at the same noise.
    """
    found = grouped(runs)
    return [
        _line(row, noise, seeds, found.get((baseline, noise), {}))
        for (row, noise), seeds in sorted(found.items(), key=lambda item: item[0][1])
    ]


def _line(
    row: str, noise: int, runs: Mapping[int, Run], baseline: Mapping[int, Run]
) -> tuple[str, ...]:
    r1 = values(runs, "r1")
    return (
        row,
        f"{noise} %",
        " ".join(f"{value:.2f}" for value in r1),
        f"{statistics.mean(r1):.2f}",
        f"{statistics.stdev(r1):.2f}" if len(r1) > 1 else "-",
        f"{statistics.mean(values(runs, 'r1', 'best')):.2f}",
        f"{statistics.mean(values(runs, 'mAP')):.2f}",
        f"{statistics.mean(values(runs, 'mINP')):.2f}",
        difference(runs, baseline),
        difference(runs, baseline, "mAP"),
        ROWS[row].published if noise == 0 else "",
    )


def measured_on(runs: Sequence[Run]) -> str:
    """What the figures are of, in words; of different sizes if the runs differ."""
    found = [each.figures()["last"] for each in runs if each.figures()]
    sizes = {(each["queries"], each["gallery"]) for each in found}
    return " or ".join(
        f"{queries} captions, {gallery} pictures" for queries, gallery in sorted(sizes)
    )


def write_csv(path: Path, runs: Sequence[Run]) -> None:
    """Every figure of every finished run, a line each."""
    with files.replacing(path) as draft, draft.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow((*KEYS, "weights", *METRICS))
        for run in runs:
            for weights, metrics in run.figures().items():
                values = (metrics[name] for name in METRICS)
                writer.writerow((*_key(run), weights, *values))


def take_over(path: Path, runs: Sequence[Run]) -> None:
    """Take figures that `write_csv` has written, for runs that have none: no training.

    Those of other people, settings or first weights are left, whatever their names;
    those of the same, under any name, are taken.

    Raises:
        ValueError: The file is no such table.
    """
    with path.open(newline="") as source:
        reader = csv.DictReader(source)
        if reader.fieldnames != [*KEYS, "weights", *METRICS]:
            raise ValueError(
                f"{path} is no table of the ablation: its columns are "
                f"{', '.join(reader.fieldnames or ['none'])}; wanted "
                f"{', '.join((*KEYS, 'weights', *METRICS))}"
            )
        known: dict[str, Figures] = {}
        for line in reader:
            figures = {name: float(line[name]) for name in METRICS}
            figures |= {name: int(line[name]) for name in SIZES}
            known.setdefault(line["digest"], {})[line["weights"]] = figures
    for run in runs:
        if not run.figures() and (figures := known.get(run.digest)):
            run.finish(figures)


def _key(run: Run) -> tuple[str, ...]:
    """A run under `KEYS`: in words, for people, and by its digest, which tells it."""
    changes = " ".join(map("=".join, run.changes))
    words = (Path(run.start).stem, run.row, changes, str(run.noise), str(run.seed))
    return (*words, run.digest)


def draw(path: Path, runs: Sequence[Run]) -> None:
    """R1 over the noise, a curve a row; over the rows where there is one noise only."""
    found = grouped(runs)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    shares = sorted({noise for _, noise in found})
    names = list(dict.fromkeys(row for row, _ in found))
    means = {key: statistics.mean(values(each, "r1")) for key, each in found.items()}
    if len(shares) > 1:
        for number, row in enumerate(names):
            at = [share for share in shares if (row, share) in means]
            heights = [means[row, share] for share in at]
            plots.line(axes, list(map(float, at)), heights, number=number, name=row)
        axes.set_xlabel("permuted captions, %")
        axes.legend()
    else:
        heights = [means[row, shares[0]] for row in names]
        spread = [_spread(found[row, shares[0]]) for row in names]
        bars = [f"{row} ({len(found[row, shares[0]])})" for row in names]
        axes.barh(bars, heights, xerr=spread, color="#bbbbbb", edgecolor="#333333")
        axes.invert_yaxis()
    label = "text to image R1 of the last weights, %"
    label += "" if len(shares) > 1 else ", mean (seeds) and spread"
    (axes.set_ylabel if len(shares) > 1 else axes.set_xlabel)(label)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    plots.save(figure, path)


def _spread(runs: Mapping[int, Run]) -> float:
    r1 = values(runs, "r1")
    return statistics.stdev(r1) if len(r1) > 1 else 0.0
