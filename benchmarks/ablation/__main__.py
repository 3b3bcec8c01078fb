# SPDX-License-Identifier: Apache-2.0
"""Train rows of the ablation, say the table, and draw it.

    python -m benchmarks.ablation --rows irra rde --seeds 0 1 2 --noise 0 50
    python -m benchmarks.ablation --groups presets --jobs 4
    python -m benchmarks.ablation --measured docs/ablation.csv --only-table

Trains each row of `rows` from the demo's start on drawn people, 1500 to learn from and
300 whom nothing was chosen by, with the same people, order and start for all rows of a
seed. Finished runs are not repeated, interrupted ones resume; nor are those whose
figures a CSV file has, such as docs/ablation.csv of what has been measured so far.
Writes ablation.csv and ablation.png. Not part of `make bench`: a run takes minutes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import common
from benchmarks.ablation import table
from benchmarks.ablation.rows import GROUPS, ROWS
from benchmarks.ablation.runs import POPULATIONS, START, planned, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print the table and draw the figure."""
    parser = common.parser(__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=[])
    parser.add_argument("--groups", nargs="*", choices=GROUPS, default=[])
    seeds = range(len(POPULATIONS))
    parser.add_argument("--seeds", nargs="*", type=int, choices=seeds, default=[0])
    parser.add_argument("--noise", nargs="*", type=int, default=[0])
    parser.add_argument("--start", default=START, help="first weights of all rows")
    parser.add_argument("--baseline", choices=ROWS, default="irra")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--measured", type=Path, help="CSV of runs not to repeat")
    parser.add_argument("--only-table", action="store_true", help="train nothing")
    given = parser.parse_args(arguments)
    rows = [*given.rows, *(name for group in given.groups for name in GROUPS[group])]
    folder = given.workdir.absolute() / Path(given.start).stem
    changes = tuple(tuple(each.split("=", 1)) for each in given.set)
    runs = planned(
        list(dict.fromkeys(rows)) or list(ROWS),
        given.noise,
        given.seeds,
        folder,
        start=given.start,
        changes=changes,
    )
    if given.measured:
        table.take_over(given.measured, runs)
    try:
        if not given.only_table:
            train(runs, jobs=given.jobs)
    finally:
        say(folder, runs, given.baseline)
    return 0


def say(folder: Path, runs: Sequence, baseline: str) -> None:
    """Print and write what there is of the table."""
    if not table.grouped(runs):
        print("no run has finished yet")
        return
    common.show(
        f"Ablation on drawn people, compared with {baseline}",
        table.HEADER,
        table.lines(runs, baseline),
        notes=(
            f"text to image, percent, of unseen people: {table.measured_on(runs)};",
            "spread: standard deviation over the seeds; best: R1 of the weights chosen",
            "on validation people; difference: paired by seed, with its 95 %",
            "interval (Student's t); published: on CUHK, ICFG and RSTP",
        ),
    )
    table.write_csv(folder / "ablation.csv", runs)
    table.draw(folder / "ablation.png", runs)


if __name__ == "__main__":
    sys.exit(main())
