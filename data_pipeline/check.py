# SPDX-License-Identifier: Apache-2.0
"""Check data sets before hours of training, picture by picture; nothing is written.

    python -m data_pipeline.check ROOT [--name NAME] [--json]

Finds the data sets under ROOT and reports on each:

- people, pictures and captions of each split beside the published numbers;
- what is odd: "note" is what was put in order, "warning" what may not be meant, "error"
  what training or evaluation fails on, or makes its figures worthless;
- each picture that is missing or cannot be decoded.

The exit status is 0 if training and evaluation will go through (whatever the counts),
1 if they will not, and 2 if the command itself is wrong.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data_pipeline.command import Parser, run, say, source, told_of
from data_pipeline.datasets import AnnotationError, DatasetMissing, folder, open_dataset
from data_pipeline.datasets.layout import Counts, traces
from data_pipeline.datasets.published import LAYOUTS
from data_pipeline.diagnosis import Diagnosis, diagnose
from data_pipeline.hints import printable
from data_pipeline.tokenizer import Tokenizer, open_tokenizer

NAMED = 50
"""Number of unreadable pictures that are listed, except with --json."""


def detect(root: str) -> list[str]:
    """Return the names of the data sets found, at least in part, under `root`."""
    names = [name for name, layout in LAYOUTS.items() if traces(layout, root)]
    if (Path(os.path.expanduser(root)) / folder.CAPTIONS).is_file():
        names.append("folder")
    return names


def table(diagnosis: Diagnosis) -> str:
    """Return a text table of the counts of each split beside the published ones."""
    layout, published = LAYOUTS.get(diagnosis.name), diagnosis.published
    doubtful = published and layout is not None and layout.verified != "yes"
    heading = "published (unverified)" if doubtful else "published"
    rows = [("split", "ids", "images", "captions", heading, "")]
    for name in ("train", "val", "test"):
        mine = diagnosis.splits.get(name, Counts(0, 0, 0))
        theirs = published.get(name)
        if mine.images or theirs:
            cells = map(str, _tuple(mine))
            rows.append((name, *cells, _slashed(theirs), _verdict(mine, theirs)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_row(row, widths) for row in rows)


def report(diagnosis: Diagnosis) -> str:
    """Return the report for people."""
    pictures, bad = diagnosis.pictures, diagnosis.bad
    lines = [
        f"{diagnosis.name} at {printable(diagnosis.root)}",
        table(diagnosis),
        *map(str, diagnosis.findings),
        *(f"  {each.split}  {each.path}: {each.reason}" for each in bad[:NAMED]),
    ]
    if len(bad) > NAMED:
        lines.append(f"  and {len(bad) - NAMED} more; --json lists all")
    if pictures.decoded:
        heights, widths = (
            "{} to {}".format(*ends) for ends in (pictures.heights, pictures.widths)
        )
        kinds = _listed(pictures.formats)
        lines.append(f"{kinds}, {heights} pixels high, {widths} wide")
    lines.append(
        f"{pictures.total} pictures: {pictures.decoded} decoded, {len(bad)} missing or "
        "unreadable\n"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    flags = _parser().parse_args(arguments)
    names = [flags.name] if flags.name else detect(flags.root)
    if not names:
        print(f"no data set under {flags.root!r}. Looked for {_places()}")
        return 1
    try:
        tokenizer = open_tokenizer(flags.tokenizer)
        results = [_check(name, flags, tokenizer) for name in names]
    except (ValueError, OSError) as error:
        return told_of(flags, error)
    if flags.json:
        reports = [result for result, _ in results]
        print(json.dumps({"data_sets": reports}, indent=1))
    return int(not all(sound for _, sound in results))


def _check(
    name: str, flags: argparse.Namespace, tokenizer: Tokenizer
) -> tuple[dict[str, object], bool]:
    """Check one data set; return the report for scripts, and whether it is sound."""
    try:
        # A population is read where it was drawn, and not drawn here.
        layout = "cuhk_pedes" if name == "synthetic" else name
        dataset = open_dataset(layout, flags.root)
    except (AnnotationError, DatasetMissing) as error:
        if not flags.json:
            say(f"{name}: {error}\n")
        return {"sound": False, "name": name, "error": str(error)}, False
    diagnosis = diagnose(
        dataset, tokenizer, flags.context_length, progress=_progress(name)
    )
    if not flags.json:
        say(report(diagnosis))
    return diagnosis.as_json(), diagnosis.sound


def _progress(name: str) -> Callable[[int, int], None]:
    """Return what keeps a line on a terminal up to date."""
    if not sys.stderr.isatty():
        return lambda done, total: None
    last = [0.0]

    def say(done: int, total: int) -> None:
        """Say how far it is, on one line of a terminal."""
        now = time.monotonic()
        if done == total:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        elif now - last[0] > 0.2:
            last[0] = now
            line = f"\r{name}: {done:,} of {total:,} pictures ({done / total:.0%})"
            print(line, end="", file=sys.stderr, flush=True)

    return say


def _parser() -> argparse.ArgumentParser:
    parser = Parser(module="data_pipeline.check", description=__doc__.split("\n")[0])
    parser.add_argument(
        "root", type=source, help="folder with the data sets, or of one of them"
    )
    parser.add_argument("--name", help="check only this data set, e.g. cuhk_pedes")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument(
        "--tokenizer",
        type=source,
        default="clip",
        help="config.data.tokenizer of the run",
    )
    parser.add_argument(
        "--context-length",
        type=int,
        default=77,
        help="config.model.context_length of the run (default: 77)",
    )
    return parser


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in Counter(numbers).most_common())


def _tuple(size: Counts) -> tuple[int, int, int]:
    return size.ids, size.images, size.captions


def _slashed(size: Counts | None) -> str:
    return "/".join(map(str, _tuple(size))) if size else "-"


def _verdict(mine: Counts, theirs: Counts | None) -> str:
    if theirs is None:
        return ""
    return "equal" if mine == theirs else "DIFFERENT"


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if 1 <= column <= 3 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _places() -> str:
    parts = [f"{y.folder}/{name}" for y in LAYOUTS.values() for name in y.annotations]
    return ", ".join([*parts, folder.CAPTIONS])


if __name__ == "__main__":
    # A reader such as head may leave early.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    run(main)
